"""What a reader should know before believing the headline, decided from the figures alone."""

from collections.abc import Iterable, Sequence

from benchmarks.report.results import Goals, ModelResult, Verdict
from benchmarks.report.words import lost, miou, number, times

CONVERGENCE_MARGIN = 0.01
"""A baseline that a compressed form of itself beats by more than a point was not trained to the end."""

DRIFT = 0.03
"""Medians that differ by less than this may change places in the next run, and the verdict says so."""


def verdicts(
    models: Sequence[ModelResult], *, goals: Goals | None = None, lookup_table_miou: float | None = None
) -> tuple[Verdict, ...]:
    """Judge `models`: the reference first, the most compressed one last."""
    goals = goals or Goals()
    return (
        *_convergence(models),
        *_int8_against_float(models),
        *_speedup(models, goals.speedup),
        *_drop(models, goals.max_drop),
        *_lookup_table(models[0], lookup_table_miou, goals.above_lookup_table),
    )


def _convergence(models: Sequence[ModelResult]) -> Iterable[Verdict]:
    reference = models[0]
    scored = [
        (model.miou, model)
        for model in models[1:]
        if model.miou is not None and model.scored_like(reference) and _is_compressed(model, models)
    ]
    if reference.miou is None or not scored:
        return
    best, model = max(scored, key=lambda pair: pair[0])
    figures = f"{model.name} scores {miou(best)}, {reference.name} {miou(reference.miou)}"
    if best - reference.miou > CONVERGENCE_MARGIN:
        yield Verdict(
            ok=False,
            text="baseline not converged",
            detail=f"{figures}: a compressed model beats what it was made from by more than {CONVERGENCE_MARGIN}, so "
            "the drop means nothing; train the dense model for longer",
        )
    else:
        yield Verdict(
            ok=True,
            text=f"no compressed model scores more than {CONVERGENCE_MARGIN} above the baseline",
            detail=f"at best {figures}; a larger lead would mean a baseline not converged",
        )


def _is_compressed(model: ModelResult, models: Sequence[ModelResult]) -> bool:
    """Made smaller or coarser than the reference, and from it, as far as that is known."""
    reference = models[0]
    smaller = model.macs < reference.macs or (model.precision == "int8" and reference.precision == "fp32")
    return smaller and _may_stem_from(reference, model, models)


def _may_stem_from(reference: ModelResult, model: ModelResult, models: Sequence[ModelResult]) -> bool:
    """Whether `model` has the weights of `reference`, or was cut from them, or nothing tells what it was made from."""
    if model.weights == reference.weights or model.weights is None or reference.weights is None:
        return True
    if model.cut_from is None or model.cut_from == reference.weights:
        return model.cut_from is not None
    parents = [other for other in models if other.weights == model.cut_from]
    return all(_may_stem_from(reference, parent, models) for parent in parents)


def _is_same_network(one: ModelResult, other: ModelResult) -> bool:
    """Of the same checkpoint; of models from elsewhere, with as many multiplications."""
    if one.weights is None or other.weights is None:
        return one.macs == other.macs
    return one.weights == other.weights


def _int8_against_float(models: Sequence[ModelResult]) -> Iterable[Verdict]:
    for model in models:
        parent = next((m for m in models if m.precision == "fp32" and _is_same_network(m, model)), None)
        if model.precision != "int8" or parent is None or model.made_for is not None:
            continue
        ok = model.latency_ms.p50 < parent.latency_ms.p50
        close = ok and model.latency_ms.p50 > parent.latency_ms.p50 * (1 - DRIFT)
        yield Verdict(
            ok=ok,
            text=f"{model.name}: INT8 {'faster' if ok else 'not faster'} than float",
            detail=f"{number(model.latency_ms.p50)} ms against {number(parent.latency_ms.p50)} ms of {parent.name}"
            + (f"; by less than {DRIFT:.0%}, which another run may reverse" if close else "")
            + ("" if ok else "; on this machine INT8 costs accuracy and gains nothing: serve the float model"),
        )


def _speedup(models: Sequence[ModelResult], goal: float | None) -> Iterable[Verdict]:
    if goal is None:
        return
    gain = models[-1].gain
    ok = gain >= goal
    yield Verdict(
        ok=ok,
        text=f"speed-up goal {'met' if ok else 'missed'}",
        detail=f"{models[-1].name}: {times(gain)}, asked for {times(goal)}",
    )


def _drop(models: Sequence[ModelResult], goal: float | None) -> Iterable[Verdict]:
    if goal is None:
        return
    before, after = models[0].miou, models[-1].miou
    if before is None or after is None or not models[-1].scored_like(models[0]):
        detail = f"{models[0].name} and {models[-1].name} have not been scored on the same split of the same data"
        yield Verdict(ok=False, text="accuracy goal not checked", detail=detail)
        return
    ok = before - after <= goal
    yield Verdict(
        ok=ok,
        text=f"accuracy goal {'met' if ok else 'missed'}",
        detail=f"{models[-1].name} {lost(before - after)} ({miou(before)} to {miou(after)}); "
        f"at most {miou(goal)} may be lost",
    )


def _lookup_table(reference: ModelResult, lookup: float | None, margin: float | None) -> Iterable[Verdict]:
    if lookup is None or reference.miou is None:
        return
    needed = lookup + (margin or 0.0)
    ok = reference.miou >= needed if margin else reference.miou > lookup
    yield Verdict(
        ok=ok,
        text=f"{reference.name} {'beats' if ok else 'does not beat'} a grey-value look-up table",
        detail=f"mIoU {miou(reference.miou)}; the best table from grey value to class scores {miou(lookup)}"
        + (f", and the goal is at least {miou(margin)} above it" if margin else ""),
    )
