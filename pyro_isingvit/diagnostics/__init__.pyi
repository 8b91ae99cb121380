from . import plots
from .arviz_adapter import read_netcdf, write_netcdf
from .attention import Attention, attention_maps
from .calibration import metrics, paired_difference, reliability_table, selective_accuracy
from .checks import (
    LeaveOneOut,
    leave_one_out,
    posterior_predictive_check,
    predictive_check,
    prior_predictive_check,
)
from .compare import PriorComparison, compare_priors, power_sensitivity
from .conformal import ConformalSets, conformal
from .conformal_intervals import ConformalIntervals, conformal_intervals
from .conformal_rule import ConformalRule, Penalty, conformal_rule
from .findings import Findings, examine
from .inclusion import inclusion_dataset, inclusion_table, stability, threshold_table
from .inference_data import to_inference_data
from .meaning import inclusion_meaning, measured_reliability
from .reference import against_reference, convergence, quantities, reference_data
from .report import verdicts, write_report
from .select import Selection, select
from .shift import outside_scores, under_shift
from .truth import inclusion_reliability, selection_table
from .units import alive_units, unit_inclusion

__all__ = [
    "Attention",
    "ConformalIntervals",
    "ConformalRule",
    "ConformalSets",
    "Findings",
    "LeaveOneOut",
    "Penalty",
    "PriorComparison",
    "Selection",
    "against_reference",
    "alive_units",
    "attention_maps",
    "compare_priors",
    "conformal",
    "conformal_intervals",
    "conformal_rule",
    "convergence",
    "examine",
    "inclusion_dataset",
    "inclusion_meaning",
    "inclusion_reliability",
    "inclusion_table",
    "leave_one_out",
    "measured_reliability",
    "metrics",
    "outside_scores",
    "paired_difference",
    "plots",
    "posterior_predictive_check",
    "power_sensitivity",
    "predictive_check",
    "prior_predictive_check",
    "quantities",
    "read_netcdf",
    "reference_data",
    "reliability_table",
    "select",
    "selection_table",
    "selective_accuracy",
    "stability",
    "threshold_table",
    "to_inference_data",
    "under_shift",
    "unit_inclusion",
    "verdicts",
    "write_netcdf",
    "write_report",
]
