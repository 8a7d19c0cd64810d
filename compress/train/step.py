"""One step of gradient descent: all of it, or nothing.

A step whose loss or gradient is not finite leaves weights, averages and statistics as they were. One that does not fit
into memory is repeated with fewer images at a time.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.progress import say
from compress.settings.fit import FitSettings
from compress.train.batchnorm import single_values_told
from compress.train.ema import MovingAverage
from compress.train.feed import Fed
from compress.train.memory import free, is_out_of_memory
from compress.train.objective import Objective
from compress.train.optimizer import adamw, set_learning_rate, set_momentum
from compress.train.precision import autocast
from compress.train.runtime import Runtime
from compress.train.schedule import Pace
from export.errors import WorkFailedError

NON_FINITE_IN_A_ROW = 5
SMALLEST_SCALE = 1.0
"""Of a loss in float16. The scale starts at 65536 and halves with each overflow; below this, scaling is no remedy."""


class Stepper:
    """A network and what a step needs: optimizer, gradient scaler (float16 only), averaged weights."""

    def __init__(self, network: nn.Module, objective: Objective, settings: FitSettings, runtime: Runtime) -> None:
        self.average = MovingAverage(network, settings.ema_decay)
        self.norm = 0.0
        """L2 norm of the last step's gradients, before clipping."""
        self.at_once = settings.micro_batch or settings.batch_size
        """Images that pass through the network at a time; fewer after memory was short."""
        self._network = network
        self._objective = objective
        self._clip_norm = settings.clip_norm
        self._rate = f"{settings.SECTION}.learning_rate"
        self._runtime = runtime
        self._optimizer = adamw(network, settings)
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "float16")
        self._skipped: deque[list[str]] = deque(maxlen=NON_FINITE_IN_A_ROW)
        self._buffers = list(network.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]

    def take(self, batch: Fed, pace: Pace) -> float | None:
        """Update the weights at the rate of `pace` and return the loss; None if the step was skipped.

        Raises WorkFailedError when steps are skipped again and again, or when a single image does not fit into memory.
        """
        set_learning_rate(self._optimizer, pace.rate)
        if pace.momentum is not None:
            set_momentum(self._optimizer, pace.momentum)
        self._copy(self._buffers, self._buffers_before)
        loss = self._gradients(batch)
        if not math.isfinite(loss):
            self._skip(batch.names)
            return None
        self._scaler.unscale_(self._optimizer)
        self.norm = float(nn.utils.clip_grad_norm_(self._network.parameters(), self._clip_norm))
        if not math.isfinite(self.norm):
            if self._scaler.is_enabled():
                self._lower_scale()
            else:
                self._skip(batch.names)
            return None
        self._skipped.clear()
        self._step()
        self.average.update()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, as `torch.load(weights_only=True)` takes them."""
        return {
            "network": self._network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "at_once": self.at_once,
            "skipped": list(self._skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.at_once = state["at_once"]
        self._skipped.extend(state["skipped"])

    def _step(self) -> None:
        """Step the optimizer. AdamW allocates its memory in the first step; fewer images would not help."""
        try:
            self._scaler.step(self._optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise WorkFailedError(
                "out of memory in the optimizer, which holds three more numbers for each weight: its gradient, and the "
                "means of that and of its square; set a smaller model.base"
            ) from error
        self._scaler.update()

    def _gradients(self, batch: Fed) -> float:
        """Leave gradients in the network and return the loss; halve the images at once each time memory is short."""
        while True:
            try:
                return self._accumulate(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the handler: the error's traceback holds the activations of the pass that failed.
            self._undo()
            free(self._runtime.device)
            self._halve(batch.masks_NHW)

    def _accumulate(self, batch: Fed) -> float:
        self._runtime.seed(batch.seed)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._runtime.device)
        for part in self._objective.parts(batch.images_NCHW, batch.masks_NHW, self.at_once, batch.second):
            with single_values_told(), autocast(self._runtime.precision, self._runtime.device):
                logits = self._objective.logits(self._network, part)
            loss = self._objective.loss(logits, part)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        penalty = self._objective.penalty(self._network)
        if penalty is not None:
            self._scaler.scale(penalty).backward()  # type: ignore[no-untyped-call]
        return total.item()

    def _halve(self, masks_NHW: Tensor) -> None:
        count, height, width = masks_NHW.shape
        before = min(self.at_once, count)
        if before == 1:
            raise WorkFailedError(
                f"out of memory with a single image of {height}x{width}; set a smaller data.crop or data.size, a "
                "smaller model.base, or train.precision=bfloat16"
            )
        self.at_once = before // 2
        say(
            f"out of memory with {before} images of {height}x{width} at once; from here on {self.at_once} at a time, "
            f"the gradients of {-(-count // self.at_once)} passes added up"
        )

    def _skip(self, names: Sequence[str]) -> None:
        """Skip a batch whose loss or gradient is not finite; several in a row end the run."""
        self._undo()
        self._skipped.append(list(names))
        say(f"the loss or the gradient of {', '.join(names)} is not finite; the step is skipped")
        if len(self._skipped) == NON_FINITE_IN_A_ROW:
            instead = "" if self._runtime.precision == "float32" else ", or set train.precision=float32"
            raise WorkFailedError(
                f"the loss was not finite in {NON_FINITE_IN_A_ROW} steps in a row, last for "
                f"{', '.join(names)}; lower {self._rate}{instead}"
            )

    def _lower_scale(self) -> None:
        """Gradients beyond float16 are due to the scale, not the batch; the right scale is found by trying."""
        self._undo()
        scale = self._scaler.get_scale() * self._scaler.get_backoff_factor()
        self._scaler.update(scale)
        if scale < SMALLEST_SCALE:
            raise WorkFailedError(
                "gradients stay beyond float16 however small the loss is scaled; set train.precision=bfloat16 or "
                f"float32, or lower {self._rate}"
            )
        say(f"a gradient is beyond float16; the step is skipped and the loss scaled by {scale:g} from here on")

    def _undo(self) -> None:
        """Undo what a pass without a step has left behind: gradients, and BatchNorm's running statistics."""
        self._optimizer.zero_grad(set_to_none=True)
        self._copy(self._buffers_before, self._buffers)

    @torch.no_grad()
    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        if source:
            torch._foreach_copy_(target, source)
