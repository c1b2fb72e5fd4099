"""What the site takes from outside this folder: the benchmarks' plots, which stand beside their
JSON.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PLOTS = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Puts the plots into the site under the path that they have in the repository."""
    top = Path(config["config_file_path"]).parent
    for plot in sorted((top / PLOTS).glob("*.svg")):
        files.append(
            File.generated(config, f"{PLOTS}/{plot.name}", abs_src_path=str(plot.absolute()))
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets pages that stand at the top of this folder name the plots by their path from it."""
    return markdown.replace(f"](../{PLOTS}/", f"]({PLOTS}/")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuses a page that would fetch something from another host: the site is read offline too."""
    fetched = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//", output
    )
    if fetched:
        raise PluginError(f"{page.file.src_uri}: fetches from another host: {fetched[0]}")
    return output
