"""What tests of several kinds share."""

from typing import Final

# Length of the embeddings in test databases: short enough to be read in a test.
DIMENSIONS: Final = 8
