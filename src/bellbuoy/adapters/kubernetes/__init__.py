"""One Deployment or StatefulSet of a Kubernetes cluster: how many replicas it has, and which revision they run."""

from bellbuoy.adapters.kubernetes.api import Kind, KubernetesApi
from bellbuoy.adapters.kubernetes.revisions import StatefulSetRollout
from bellbuoy.adapters.kubernetes.rollout import KubernetesRollout
from bellbuoy.adapters.kubernetes.scaling import Bounds, KubernetesScaling

__all__ = ["Bounds", "Kind", "KubernetesApi", "KubernetesRollout", "KubernetesScaling", "StatefulSetRollout"]
