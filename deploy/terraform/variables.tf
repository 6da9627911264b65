variable "name" {
  description = "Name of the release."
  type        = string
  default     = "bellbuoy"
}

variable "namespace" {
  description = "Namespace of the release."
  type        = string
  default     = "bellbuoy"
}

variable "create_namespace" {
  description = "Whether to make the namespace. The Secret has to be in it before the pods can start."
  type        = bool
  default     = false
}

variable "chart" {
  description = "The chart: a path, or a reference that Helm knows. Null for the one beside this module."
  type        = string
  default     = null
}

variable "chart_version" {
  description = "Version of the chart where it comes from a repository. Null for a path."
  type        = string
  default     = null
}

variable "image" {
  description = "The image and what pins it: a digest wins over a tag."
  type = object({
    repository = optional(string, "bellbuoy")
    tag        = optional(string, "")
    digest     = optional(string, "")
  })
  default = {}
}

variable "existing_secret" {
  description = "Name of a Secret with BELLBUOY_BOOTSTRAP_KEY, BELLBUOY_LEDGER__URL and the rest. Never its content: that would stand in the state."
  type        = string

  validation {
    condition     = length(var.existing_secret) > 0
    error_message = "Name a Secret that is in the namespace."
  }
}

variable "credentials_secret" {
  description = "Name of a Secret with files of providers. Empty for none."
  type        = string
  default     = ""
}

variable "settings" {
  description = "What would stand in bellbuoy.toml, by section. No secrets."
  type        = any
  default     = {}
}

variable "persistent" {
  description = "Whether each pod has a volume for its journal and its audit log. False loses both with the pod."
  type        = bool
  default     = true
}

variable "data_size" {
  description = "Size of a pod's volume. Claims that are there keep theirs."
  type        = string
  default     = "2Gi"
}

variable "storage_class" {
  description = "Storage class of the volumes. Empty for the cluster's default."
  type        = string
  default     = ""
}

variable "keda" {
  description = "Whether KEDA scales the workers by the messages that wait."
  type        = bool
  default     = false
}

variable "prometheus_operator" {
  description = "Whether to make a ServiceMonitor and a PrometheusRule."
  type        = bool
  default     = false
}

variable "values" {
  description = "Further values of the chart, which win over the variables above."
  type        = any
  default     = {}
}

variable "timeout_s" {
  description = "Seconds in which all pods have to be ready; else the release is rolled back."
  type        = number
  default     = 600
}
