"""The tests that the rules are made of. Numbers in, numbers out: no verdicts, no policy, no records but sums.

Every docstring names the null hypothesis, the assumptions and the source. One-sided p-values are for harm: small means
"worse than the null allows". All sums use `math.fsum`, so the order in which evidence arrived cannot change a digit.
"""

from perennial.decisions.statistics.counts import (
    MIN_EXPECTED,
    Counts,
    Vector,
    fisher_exact,
    homogeneity,
    largest_share_change,
    merge_sparse_cells,
    psi,
    rank_sum,
)
from perennial.decisions.statistics.losses import (
    Estimate,
    check_pairs,
    clustered_mean,
    critical_t,
    loss_standard_error,
    skewness_error,
)
from perennial.decisions.statistics.multiplicity import (
    NONE_ATTAINABLE,
    AttainablePValues,
    additional_rejections,
    attainable_fisher_exact,
    attainable_largest_share_change,
    critical_level,
    holm,
)
from perennial.decisions.statistics.partitions import (
    between_partition_sd,
    dispersion,
    p_binomial,
    p_excess,
    within_group_squares,
)
from perennial.decisions.statistics.sequential import (
    mixture_bound,
    pocock_spending,
    spending_bounds,
    symmetry_e_value,
)
from perennial.decisions.statistics.unseen import attainable_unseen_excess, good_turing, unseen_excess

__all__ = [
    "MIN_EXPECTED",
    "NONE_ATTAINABLE",
    "AttainablePValues",
    "Counts",
    "Estimate",
    "Vector",
    "additional_rejections",
    "attainable_fisher_exact",
    "attainable_largest_share_change",
    "attainable_unseen_excess",
    "between_partition_sd",
    "check_pairs",
    "clustered_mean",
    "critical_level",
    "critical_t",
    "dispersion",
    "fisher_exact",
    "good_turing",
    "holm",
    "homogeneity",
    "largest_share_change",
    "loss_standard_error",
    "merge_sparse_cells",
    "mixture_bound",
    "p_binomial",
    "p_excess",
    "pocock_spending",
    "psi",
    "rank_sum",
    "skewness_error",
    "spending_bounds",
    "symmetry_e_value",
    "unseen_excess",
    "within_group_squares",
]
