"""Make the README's picture: run the main job, ``python -m fastconv train``, and keep one of those it draws.

    python docs/pictures.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "fastconv", "train", "--out", folder], check=True)
    shutil.copy(Path(folder, "maps-1.png"), Path(__file__).with_name("train.png"))
