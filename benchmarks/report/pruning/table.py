"""What each group costs, as a table for terminal and Markdown."""

from benchmarks.report.table import Table
from benchmarks.report.words import DASH, miou
from compress.sensitivity import Analysis, GroupSensitivity


def sensitivity(analysis: Analysis) -> Table:
    """mIoU lost by each cut, the most sensitive group first."""

    def row(group: GroupSensitivity) -> tuple[str, ...]:
        cuts = {cut.share: f"{miou(analysis.lost(cut))} ({cut.kept})" for cut in group.cuts}
        lost = (cuts.get(share, DASH) for share in analysis.shares)
        return (group.group, str(group.width), *lost, miou(analysis.mean_lost(group)))

    headers = ("group", "channels", *(f"{share:.0%} kept" for share in analysis.shares), "mean lost")
    caption = (
        f"mIoU lost when a group alone is cut to the channels in brackets, of {miou(analysis.miou_parent)} on "
        f"{analysis.images} validation images"
    )
    return Table(caption, headers, tuple(map(row, analysis.most_sensitive_first())))
