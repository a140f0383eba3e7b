"""A model file names the commit of this package's source, and of nobody else's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sppnet.models import provenance


def test_an_installed_copy_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "somebody else's"]):
        subprocess.run([*git, *words], check=True)
    copy = tmp_path / "site-packages" / "copied_provenance.py"
    copy.parent.mkdir()
    shutil.copy(provenance.__file__, copy)
    script = "import copied_provenance; print(copied_provenance.trained_by()['commit'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=copy.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    subprocess.run([*git, "add", str(copy)], check=True)
    done = subprocess.run([sys.executable, "-c", script], cwd=copy.parent, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 12
