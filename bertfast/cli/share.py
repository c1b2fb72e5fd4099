"""Commands that make a model ready for others."""

from __future__ import annotations

from pathlib import Path

from .command import FILE, argument, command, option, say


@command()
@argument("adapter", metavar="DIR")
@option("--out", type=FILE, required=True, help="Folder to write; it must not exist.")
def merge(adapter: str, out: Path) -> None:
    """Add an adapter to its base model's weights: a folder of the whole model.

    DIR is what bertfast finetune --adapter wrote, or any folder of peft with LoRA, DoRA or (IA)3.

    \b
    Example:
        bertfast merge adapted --out whole
    """
    from bertfast.hub.merge import merge_adapter

    merge_adapter(adapter, out)
    print(out)


@command()
@argument("model")
@option("--to", required=True, help="onnx, openvino or torch.")
@option("--out", type=FILE, required=True, help="Folder to write; it must not exist.")
def export(model: str, to: str, out: Path) -> None:
    """Write a model for another runtime, and hold its outputs against ours.

    MODEL is a folder or a Hub id. The new folder has the settings and the tokenizer too. Sequences
    may be of any number and length.

    \b
    Example:
        bertfast export classifier --to onnx --out classifier-onnx
    """
    from bertfast.apps.export import TOLERANCE, export_model

    worst = export_model(model, to, out)
    say(f"largest difference from bertfast's outputs {worst:.1e}, of {TOLERANCE:.0e} allowed")
    print(out)


@command()
@argument("folder", metavar="DIR")
@argument("repository", metavar="REPO")
@option("--private", is_flag=True, help="Of a repository that is made: for your eyes alone.")
@option("--revision", help="Branch, made where it is not there. Default: the main one.")
@option("--message", default="Upload a model made with bertfast", help="Of the commit.")
@option("--dry-run", is_flag=True, help="List the files, and upload nothing.")
def push(
    folder: str, repository: str, private: bool, revision: str | None, message: str, dry_run: bool
) -> None:
    """Upload a model's folder, with its card, to the Hugging Face Hub as REPO (owner/name).

    The token is that of hf auth login. Weights as safetensors, settings, the tokenizer and the card
    are uploaded; whatever else lies in the folder is not.

    \b
    Example:
        bertfast push classifier owner/name --private --dry-run
    """
    from bertfast.hub.push import check_repository, collect
    from bertfast.hub.push import push as upload

    check_repository(repository)
    found = collect(folder)
    if found.left_out:
        say(f"not uploaded: {', '.join(found.left_out)}")
    if dry_run:
        for name in found.files:
            print(f"{(Path(folder) / name).stat().st_size:>13,}  {name}")
        return
    print(upload(folder, repository, private=private, revision=revision, message=message))
