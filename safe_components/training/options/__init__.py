"""Groups of options. Most groups hold the settings of one part and the call that makes that part."""

from safe_components.training.options.budget import (
    BudgetConfig,
    FeedbackBudgetConfig,
    GradientConfig,
    Multiplier,
    PIDConfig,
)
from safe_components.training.options.device import usable_device
from safe_components.training.options.estep import DualConfig, EStepConfig
from safe_components.training.options.mstep import (
    CopyConfig,
    HardConfig,
    MStepConfig,
    NoneConfig,
    PolyakConfig,
    Reference,
    RetractConfig,
    SoftConfig,
    TrustRegion,
    TrustRegionConfig,
)
from safe_components.training.options.off_policy import (
    CollectConfig,
    CriticConfig,
    GaussianPolicyConfig,
    OffPolicyCollectConfig,
    OffPolicyConfig,
    PolicyConfig,
    ReplayConfig,
)
from safe_components.training.options.ranges import (
    Count,
    Limits,
    NotNegative,
    Positive,
    Range,
    Share,
    Sizes,
    Whole,
)
from safe_components.training.options.run import EnvConfig, RecipeConfig, RunConfig, cost_suffixes

__all__ = [
    "BudgetConfig",
    "CollectConfig",
    "CopyConfig",
    "Count",
    "CriticConfig",
    "DualConfig",
    "EStepConfig",
    "EnvConfig",
    "FeedbackBudgetConfig",
    "GaussianPolicyConfig",
    "GradientConfig",
    "HardConfig",
    "Limits",
    "MStepConfig",
    "Multiplier",
    "NoneConfig",
    "NotNegative",
    "OffPolicyCollectConfig",
    "OffPolicyConfig",
    "PIDConfig",
    "PolicyConfig",
    "PolyakConfig",
    "Positive",
    "Range",
    "RecipeConfig",
    "Reference",
    "ReplayConfig",
    "RetractConfig",
    "RunConfig",
    "Share",
    "Sizes",
    "SoftConfig",
    "TrustRegion",
    "TrustRegionConfig",
    "Whole",
    "cost_suffixes",
    "usable_device",
]
