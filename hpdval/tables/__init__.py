"""Tables from scores and from finished runs: means over seeds, paired differences, how they are saved; no torch."""

from hpdval.tables.cost import Cost, cost_table, count_text, run_cost
from hpdval.tables.errors import (
    calibration_summary,
    calibration_table,
    class_error_table,
    leakage_table,
    mistake_table,
)
from hpdval.tables.fewshot import (
    FewShotResults,
    episode_differences,
    episode_table,
    fewshot_protocol_table,
    fewshot_table,
    read_fewshot,
)
from hpdval.tables.inventory import list_runs
from hpdval.tables.localisation import localisation_differences, localisation_per_class, localisation_table
from hpdval.tables.protocols import per_class_comparison, protocol_table
from hpdval.tables.published import PUBLISHED, published_per_class, published_results
from hpdval.tables.ranks import rank_table
from hpdval.tables.runs import (
    comparison_significance,
    comparison_table,
    read_runs,
    refuse_other_images,
    results_table,
    stored_scores,
)
from hpdval.tables.scores import (
    class_differences,
    difference_table,
    group_names,
    interval_table,
    per_class_table,
    score_table,
)
from hpdval.tables.show import ShownTable, formatted, save_table, to_markdown
from hpdval.tables.significance import significance_table, with_holm
from hpdval.tables.sizes import object_sizes, size_table

__all__ = [
    "PUBLISHED",
    "Cost",
    "FewShotResults",
    "ShownTable",
    "calibration_summary",
    "calibration_table",
    "class_differences",
    "class_error_table",
    "comparison_significance",
    "comparison_table",
    "cost_table",
    "count_text",
    "difference_table",
    "episode_differences",
    "episode_table",
    "fewshot_protocol_table",
    "fewshot_table",
    "formatted",
    "group_names",
    "interval_table",
    "leakage_table",
    "list_runs",
    "localisation_differences",
    "localisation_per_class",
    "localisation_table",
    "mistake_table",
    "object_sizes",
    "per_class_comparison",
    "per_class_table",
    "protocol_table",
    "published_per_class",
    "published_results",
    "rank_table",
    "read_fewshot",
    "read_runs",
    "refuse_other_images",
    "results_table",
    "run_cost",
    "save_table",
    "score_table",
    "significance_table",
    "size_table",
    "stored_scores",
    "to_markdown",
    "with_holm",
]
