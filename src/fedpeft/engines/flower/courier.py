"""Flower's side of a node: a courier between the SuperNode and the worker that stays (`fedpeft
node`).

Flower starts a fresh process for each message. This file therefore imports no torch: it hands over
the bytes and waits.
"""

from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft.errors import WireError
from fedpeft.wire.sockets import SOCKET, Envelope, ask, read_envelope

RECORD, HEAD, BODY = "fedpeft", "head", "body"
NODE = "node"
"""The key of --node-config that names the worker's folder."""


def pack_envelope(what: Envelope) -> RecordDict:
    """An envelope as Flower carries it: arrays of bytes are cut in chunks, and what several
    envelopes share goes once."""
    arrays = {name: _array(data) for name, data in ((HEAD, what.text), (BODY, what.body)) if data}
    return RecordDict({RECORD: ArrayRecord(arrays)})


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype="fedpeft.bytes", data=data)


def unpack_envelope(message: Message) -> Envelope:
    """The envelope in a message.

    Raises:
      WireError: there is none.
    """
    record = message.content.get(RECORD)
    if not isinstance(record, ArrayRecord) or HEAD not in record:
        raise WireError("a message holds no envelope")
    return read_envelope(record[HEAD].data, record[BODY].data if BODY in record else b"")


def carry(message: Message, context: Context) -> Message:
    """Hand an envelope to the worker of this node, and its answer back; why there is none is an
    answer too."""
    folder = context.node_config.get(NODE)
    try:
        if not isinstance(folder, str):
            raise WireError(
                "the SuperNode is not told where the worker is: --node-config "
                f"'{NODE}=\"/its/folder\"'"
            )
        # An envelope lives as long as its round waits, and nobody waits longer for the worker.
        answer = ask(Path(folder) / SOCKET, unpack_envelope(message), message.metadata.ttl)
    except (OSError, WireError) as error:
        answer = Envelope({"kind": "failed", "reason": _why(error)})
    return Message(pack_envelope(answer), reply_to=message)


def _why(error: Exception) -> str:
    """In words: where nothing listens and where it ended meanwhile are the common ones."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return "no worker runs at its node: start `fedpeft node` there"
    if isinstance(error, ConnectionError):
        return "its worker ended in the middle of the work"
    if isinstance(error, TimeoutError):
        return "its worker did not answer in time"
    return str(error)


app = ClientApp()
app.query()(carry)
