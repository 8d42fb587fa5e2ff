{{/*
What the objects for Prometheus have in common, and the rules with the thresholds of the values.
*/}}

{{/*
How a monitor scrapes a target: the values of the monitor.
*/}}
{{- define "apsara-bridge.scrape" -}}
path: /metrics
interval: {{ .interval }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
honorLabels: {{ .honorLabels }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
The groups of files/alerts as a JSON list, with the values of `prometheusRule` and without the alerts that are left out.
*/}}
{{- define "apsara-bridge.ruleGroups" -}}
{{- $settings := .Values.prometheusRule -}}
{{- $disabled := default list $settings.disabled -}}
{{- if empty $settings.thresholds.noEvents -}}
{{- $disabled = append $disabled "ApsaraBridgeNoEvents" -}}
{{- end -}}
{{- $groups := list -}}
{{- range (.Files.Get "files/alerts/apsara-bridge.yaml" | fromYaml).groups -}}
{{- $rules := list -}}
{{- range .rules -}}
{{- $rule := merge (dict "expr" (include "apsara-bridge.expr" (list $ .expr))) . -}}
{{- if not .alert -}}
{{- $rules = append $rules $rule -}}
{{- else if not (has .alert $disabled) -}}
{{- $own := get (default dict $settings.alerts) .alert | default dict -}}
{{- $severity := empty $own.severity | ternary dict (dict "severity" $own.severity) -}}
{{- $labels := merge (deepCopy (default dict $own.labels)) $severity -}}
{{- $labels = merge $labels (deepCopy (default dict $settings.ruleLabels)) .labels -}}
{{- $annotations := omit .annotations "runbook_url" -}}
{{- with $settings.runbookUrl -}}
{{- $url := . | replace "{alert}" $rule.alert | replace "{anchor}" (lower $rule.alert) -}}
{{- $annotations = merge (dict "runbook_url" $url) $annotations -}}
{{- end -}}
{{- $annotations = merge (deepCopy (default dict $settings.ruleAnnotations)) $annotations -}}
{{- $annotations = merge (deepCopy (default dict $own.annotations)) $annotations -}}
{{- $_ := set $rule "labels" $labels -}}
{{- $_ = set $rule "annotations" $annotations -}}
{{- with $own.for -}}
{{- $_ = set $rule "for" . -}}
{{- end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}
{{- $groups = append $groups (merge (dict "rules" $rules) .) -}}
{{- end -}}
{{- end -}}
{{- toJson $groups -}}
{{- end -}}

{{/*
The comments of the rules that name values of `prometheusRule`, each with the number or the window before it, as a JSON
list of marker, key and kind: number, seconds or window. Pass a text.
*/}}
{{- define "apsara-bridge.markers" -}}
{{- $markers := list -}}
{{- range (regexFindAll "([0-9.]+|[[][0-9a-z]+[]]) # (thresholds|slo)[.][A-Za-z]+( in seconds)?" . -1 | uniq) -}}
{{- $kind := hasPrefix "[" . | ternary "window" (hasSuffix " in seconds" . | ternary "seconds" "number") -}}
{{- $markers = append $markers (dict "marker" . "key" (regexFind "(thresholds|slo)[.][A-Za-z]+" .) "kind" $kind) -}}
{{- end -}}
{{- toJson $markers -}}
{{- end -}}

{{/*
An expression in which the values replace what is before such comments: (list $ expression).
*/}}
{{- define "apsara-bridge.expr" -}}
{{- $settings := (index . 0).Values.prometheusRule -}}
{{- $expr := index . 1 -}}
{{- range (include "apsara-bridge.markers" $expr | fromJsonArray) -}}
{{- $value := get (get $settings (splitList "." .key | first)) (splitList "." .key | last) -}}
{{- $text := toString $value -}}
{{- if eq .kind "window" -}}
{{- $text = printf "[%v]" $value -}}
{{- else if eq .kind "seconds" -}}
{{- $text = include "apsara-bridge.seconds" $value -}}
{{- else if not (kindIs "string" $value) -}}
{{- $text = toJson $value -}}
{{- end -}}
{{- $expr = replace .marker $text $expr -}}
{{- end -}}
{{- $expr -}}
{{- end -}}

{{/*
A time with one unit in seconds, or 0 if it is none.
*/}}
{{- define "apsara-bridge.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 "d" 86400 "w" 604800 -}}
{{- $text := toString . -}}
{{- if regexMatch "^[1-9][0-9]{0,5}[smhdw]$" $text -}}
{{- mul (regexFind "^[0-9]+" $text | int64) (get $units (regexFind "[a-z]$" $text)) -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/*
`true` for a time of Prometheus, for example 1h30m.
*/}}
{{- define "apsara-bridge.isTime" -}}
{{- $text := toString . -}}
{{- $order := "^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$" -}}
{{- if and (regexMatch $order $text) (regexMatch "[1-9]" $text) -}}
true
{{- end -}}
{{- end -}}
