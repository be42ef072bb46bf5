"""What a finished run keeps of its model on held-out examples, for its report."""

from fedpeft.errors import reason_of
from fedpeft.results.exhibit import draws, exhibit_at_end
from fedpeft.results.held_out_curves import keep_curves, tells_curves
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.client_memory import Folder


def keep_examples(folder: RunFolder, site: Site) -> str:
    """Keep pictures or lines of the held-out examples that lie here, where the plan's models give
    some; why nothing is kept, if it fails: that must not cost a run its end."""
    if draws(site.plan):
        return exhibit_at_end(folder, site.plan, site.device)
    if not tells_curves(site.plan):
        return ""
    try:
        saved = load_checkpoint(folder.checkpoint, site.plan)
        if saved is not None:
            keep_curves(folder, site, saved.state, Folder(folder.clients))
    except Exception as error:  # libraries and parts that users write may raise anything
        return f"no forecasts were kept for the report: {reason_of(error)}"
    return ""
