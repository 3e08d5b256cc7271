"""Base models: Hugging Face directories and GGUF files to a base directory."""

from convert.base.conversion import BaseReport as BaseReport
from convert.base.conversion import convert_base as convert_base
