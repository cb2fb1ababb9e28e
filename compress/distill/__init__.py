"""Distillation: a student learns from a teacher's outputs and features."""

from edgepress.compress.distill.cache import CachedTeacher, cache_outputs, may_cache
from edgepress.compress.distill.objective import FEATURE_LOSSES, OUTPUT_LOSSES, DistillObjective, DistillSettings, parse_loss
from edgepress.compress.distill.teacher import EnsembleTeacher, Lesson, ModuleTeacher, Teacher

__all__ = [
    "FEATURE_LOSSES",
    "OUTPUT_LOSSES",
    "CachedTeacher",
    "DistillObjective",
    "DistillSettings",
    "EnsembleTeacher",
    "Lesson",
    "ModuleTeacher",
    "Teacher",
    "cache_outputs",
    "may_cache",
    "parse_loss",
]
