"""Trackio reads where its database is when it is imported: the tests have a folder of their own."""

import atexit
import os
import shutil
import tempfile

_FOLDER = tempfile.mkdtemp(prefix="skyrl-trackio-")
os.environ["TRACKIO_DIR"] = _FOLDER
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
