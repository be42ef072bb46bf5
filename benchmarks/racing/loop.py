"""The bare PyTorch loop: no federation, no messages, one model that is reset for each client."""

import torch

from benchmarks.racing.course import Course, Track, trained, write


def run(course: Course, track: Track) -> None:
    model = course.model()
    tensors = trained(model)
    while track.go():
        clients = course.rounds[track.at]
        start = {name: x.detach().clone() for name, x in tensors.items()}
        total = {name: torch.zeros_like(x) for name, x in start.items()}
        for client in clients:
            write(model, start)
            course.train(model, track.at, client)
            for name, x in tensors.items():
                total[name] += x.detach()
        write(model, {name: x / len(clients) for name, x in total.items()})
        track.done()
    track.end(tensors)
