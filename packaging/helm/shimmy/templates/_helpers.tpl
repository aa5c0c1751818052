{{- define "shimmy.name" -}}
{{- if contains "shimmy" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-shimmy" .Release.Name }}{{ end }}
{{- end }}

{{- define "shimmy.selector" -}}
app.kubernetes.io/name: shimmy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shimmy.labels" -}}
{{ include "shimmy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "shimmy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* How many servers there may be. */ -}}
{{- define "shimmy.maxReplicas" -}}
{{ if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}{{ else }}{{ .Values.replicas }}{{ end }}
{{- end }}

{{- define "shimmy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Numbers come through JSON: helm would write 1048576 as 1.048576e+06. */ -}}
{{- define "shimmy.environment" -}}
{{- with .Values.env }}
env:
  {{- range $variable, $value := . }}
  - {name: {{ $variable }}, value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}}
  {{- end }}
{{- end }}
{{- with .Values.secret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}
