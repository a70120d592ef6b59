"""Trackio reads where its database is when it is imported: the tests have a folder of their own."""

import os
import tempfile

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="skyrl-trackio-")
