"""`compress` (and, where Unix has that name already, `segpress`)."""

import logging
import sys
import warnings

import typer

from compress.cli import (
    bench,
    data,
    evaluate,
    export,
    predict,
    prune,
    quantize,
    run,
    serve,
    serve_key,
    settings,
    train,
    verify,
)
from export.errors import SegpressError

app = typer.Typer(
    name="compress",
    help="From a folder of images and masks to a small, fast, proven INT8 segmentation model behind an endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.command)
app.add_typer(data.app, name="data")
app.command("train")(train.command)
app.command("prune")(prune.command)
app.command("quantize")(quantize.command)
app.command("export")(export.command)
app.command("settings")(settings.command)
app.command("verify")(verify.command)
app.command("evaluate")(evaluate.command)
app.command("predict")(predict.command)
app.command("serve")(serve.command)
app.command("serve-key")(serve_key.command)
app.add_typer(bench.app, name="bench")

INTERRUPTED = 130


def main() -> None:
    """Run a command; a mistake of the user's is one message and a status, never a traceback."""
    _log_to_stderr()
    try:
        app()
    except SegpressError as error:
        _say(f"compress: {error}")
        sys.exit(error.exit_status)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # what Typer makes of Ctrl-C
            _say("compress: interrupted; finished work is kept, and running the same command again continues")
        raise
    except BrokenPipeError:
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _say("compress: out of memory; try smaller images, a smaller batch or a smaller model")
        sys.exit(1)
    except OSError as error:
        _say(f"compress: {error}; finished work is kept, and running the same command again continues")
        sys.exit(1)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """By its words: what torch raises is known only where torch is installed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("out of memory", "allocate memory"))


def _log_to_stderr() -> None:
    """Warnings of our libraries' internals are for their developers; ours are for the user."""
    warnings.simplefilter("ignore")
    # A person needs no clock beside each line; a log does, and never a line that is wrapped.
    form = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, stream=sys.stderr)
    for package in ("compress", "export", "serve", "benchmarks"):
        logging.getLogger(package).setLevel(logging.INFO)


def _say(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
