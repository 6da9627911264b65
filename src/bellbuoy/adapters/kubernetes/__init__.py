"""One Deployment of a Kubernetes cluster: how many replicas it has, and which revision they run."""

from bellbuoy.adapters.kubernetes.api import KubernetesApi
from bellbuoy.adapters.kubernetes.rollout import KubernetesRollout
from bellbuoy.adapters.kubernetes.scaling import Bounds, KubernetesScaling

__all__ = ["Bounds", "KubernetesApi", "KubernetesRollout", "KubernetesScaling"]
