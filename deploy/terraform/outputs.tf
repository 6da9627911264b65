output "namespace" {
  description = "Where it runs."
  value       = helm_release.bellbuoy.namespace
}

output "release" {
  description = "Name of the release; the Service is this, with -bellbuoy behind it where that is not in it."
  value       = helm_release.bellbuoy.name
}

output "revision" {
  description = "The chart's version that is installed."
  value       = helm_release.bellbuoy.version
}
