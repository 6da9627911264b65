{{- define "bellbuoy.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "bellbuoy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bellbuoy.labels" -}}
{{ include "bellbuoy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "bellbuoy.secret" -}}
{{ required "existingSecret: name a Secret with BELLBUOY_BOOTSTRAP_KEY, BELLBUOY_LEDGER__URL and the rest" .Values.existingSecret }}
{{- end }}

{{- define "bellbuoy.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* A StatefulSet's pods. Called with a dict: root, part (api or worker), command. */}}
{{- define "bellbuoy.pod" -}}
{{- $root := .root -}}
{{- $own := index $root.Values .part -}}
{{- $acting := and $root.Values.kubernetes.enabled (eq .part "worker") -}}
metadata:
  labels:
    {{- include "bellbuoy.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
  annotations:
    checksum/settings: {{ toToml $root.Values.settings | sha256sum }}
    {{- with $own.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "bellbuoy.name" $root }}{{ if $acting }}-worker{{ end }}
  automountServiceAccountToken: {{ $acting }}
  # A Service of this name would set variables that name no setting, which are refused.
  enableServiceLinks: false
  # Longer than [delivery] drain_s and what is left to do after it.
  terminationGracePeriodSeconds: 45
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    # A volume is given to the group once; later mounts leave the files' own modes, which let nobody else in, as they are.
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: bellbuoy
      image: {{ include "bellbuoy.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [{{ .command }}]
      env:
        - name: BELLBUOY_CONFIG
          value: /etc/bellbuoy-settings/bellbuoy.toml
        - name: BELLBUOY_SERVER__HOST
          value: "0.0.0.0"
        - name: BELLBUOY_SERVER__PORT
          value: "8470"
        - name: BELLBUOY_DATA__DIR
          value: /var/lib/bellbuoy/data
        {{- if $acting }}
        - name: BELLBUOY_KUBERNETES__STATEFULSET
          value: {{ include "bellbuoy.name" $root }}-worker
        - name: BELLBUOY_KUBERNETES__MIN_REPLICAS
          value: {{ ternary 1 $root.Values.kubernetes.minReplicas $root.Values.worker.keda.enabled | quote }}
        - name: BELLBUOY_KUBERNETES__MAX_REPLICAS
          # Where KEDA sets the number, only restarts and rollback are left.
          value: {{ ternary 1 $root.Values.kubernetes.maxReplicas $root.Values.worker.keda.enabled | quote }}
        - name: BELLBUOY_KUBERNETES__ROLLBACK
          value: {{ $root.Values.kubernetes.rollback | quote }}
        {{- end }}
      envFrom:
        - secretRef:
            name: {{ include "bellbuoy.secret" $root }}
      ports:
        - name: http
          containerPort: 8470
      # The process alone: an outage of a store must never restart it.
      livenessProbe:
        httpGet: { path: /livez, port: http }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: { path: /readyz, port: http }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      startupProbe:
        httpGet: { path: /livez, port: http }
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 60
      resources:
        {{- toYaml $own.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: data
          mountPath: /var/lib/bellbuoy
        - name: tmp
          mountPath: /tmp
        - name: settings
          mountPath: /etc/bellbuoy-settings
          readOnly: true
        {{- if $root.Values.credentialsSecret }}
        - name: credentials
          mountPath: /etc/bellbuoy
          readOnly: true
        {{- end }}
  volumes:
    {{- if not $root.Values.data.persistent }}
    - name: data
      emptyDir:
        sizeLimit: {{ $root.Values.data.size }}
    {{- end }}
    - name: tmp
      emptyDir:
        medium: Memory
        sizeLimit: 64Mi
    - name: settings
      configMap:
        name: {{ include "bellbuoy.name" $root }}
    {{- if $root.Values.credentialsSecret }}
    - name: credentials
      secret:
        secretName: {{ $root.Values.credentialsSecret }}
        defaultMode: 0440
    {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "bellbuoy.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ .part }}
  {{- with $own.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
