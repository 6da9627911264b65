locals {
  values = {
    image             = var.image
    existingSecret    = var.existing_secret
    credentialsSecret = var.credentials_secret
    settings          = var.settings
    data              = { persistent = var.persistent, size = var.data_size, storageClass = var.storage_class }
    worker            = { keda = { enabled = var.keda } }
    serviceMonitor    = { enabled = var.prometheus_operator }
    prometheusRule    = { enabled = var.prometheus_operator }
  }
}

resource "helm_release" "bellbuoy" {
  name             = var.name
  namespace        = var.namespace
  create_namespace = var.create_namespace
  chart            = coalesce(var.chart, "${path.module}/../helm/bellbuoy")
  version          = var.chart_version
  values           = [yamlencode(local.values), yamlencode(var.values)]
  atomic           = true
  wait             = true
  timeout          = var.timeout_s
  max_history      = 10
}
