"""Adapters of a store merged: into one adapter, as peft's `add_weighted_adapter` does, or into their base; and
adapters written back as `peft` reads them.
"""

from convert.merge.export import export_adapter as export_adapter
from convert.merge.into_base import merge_into_base as merge_into_base
from convert.merge.merging import Merged as Merged
from convert.merge.merging import merge as merge
from convert.merge.recipe import Wish as Wish
from convert.merge.recipe import recipe_of as recipe_of
from convert.merge.sources import Weighted as Weighted
from convert.merge.sources import read_sources as read_sources
