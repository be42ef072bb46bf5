"""LoRA on the embedded vision transformer and handwritten digits: the loop is yours, so stop when
you like."""

from fedpeft import InProcess, evaluate, federate, open_site, read_plan, start

PLAN = """
method = { name = "lora", rank = 4 }
rounds = 20
cohort = 8

[partition]
name = "dirichlet"
clients = 16
alpha = 1.0

[local]
lr = 0.01
batch_size = 16
optimizer = "adamw"
"""


def main() -> None:
    plan = read_plan(PLAN)
    site = open_site(plan)
    for state, ledger in federate(plan, InProcess(site), start(plan, site.params())):
        accuracy = evaluate(plan.task, site.model, state.params, site.data.held_out())[
            "accuracy"
        ].value
        print(
            f"round {state.round}: accuracy {accuracy:.3f}, {ledger.bytes_up:,} bytes up, failed "
            f"{ledger.failed}"
        )
        if accuracy > 0.95:
            break


if __name__ == "__main__":
    main()
