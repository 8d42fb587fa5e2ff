{{/*
Names, labels, images, and what the rest reads out of the values. What refuses values is in _validate.tpl, the pod in
_pod.tpl.
*/}}

{{- define "apsara-bridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/*
50 characters: a StatefulSet's name and a hash must fit into a label of its pods, of 63.
*/}}
{{- define "apsara-bridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apsara-bridge.adminName" -}}
{{- printf "%s-admin" (include "apsara-bridge.fullname" .) -}}
{{- end -}}

{{- define "apsara-bridge.quickStartName" -}}
{{- printf "%s-quick-start" (include "apsara-bridge.fullname" .) -}}
{{- end -}}

{{- define "apsara-bridge.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "apsara-bridge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "apsara-bridge.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
Labels by which pods are selected: they never change, for a selector can't be changed. The component keeps the pod of
the test apart.
*/}}
{{- define "apsara-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "apsara-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: bridge
{{- end -}}

{{/*
Labels of an object, without its component.
*/}}
{{- define "apsara-bridge.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "apsara-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: apsara-bridge
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "apsara-bridge.labels" -}}
{{ include "apsara-bridge.commonLabels" . }}
app.kubernetes.io/component: bridge
{{- end -}}

{{/*
The image: registry/repository, then the digest if there is one, else the tag.
*/}}
{{- define "apsara-bridge.image" -}}
{{- $image := .Values.image -}}
{{- $registry := default $image.registry (.Values.global).imageRegistry -}}
{{- $name := $image.repository -}}
{{- if $registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $image.repository -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag | toString) -}}
{{- end -}}
{{- end -}}

{{/*
Names of the secrets to pull images with, the global ones first; each a text or an object with a name.
*/}}
{{- define "apsara-bridge.imagePullSecrets" -}}
{{- $names := list -}}
{{- range concat (default list (.Values.global).imagePullSecrets) (default list .Values.imagePullSecrets) -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- with uniq $names -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end -}}
{{- end -}}

{{/*
A list as JSON, of a value that may be a list, one item, or nothing.
*/}}
{{- define "apsara-bridge.list" -}}
{{- if kindIs "invalid" . -}}
[]
{{- else if kindIs "slice" . -}}
{{ toJson . }}
{{- else -}}
{{ toJson (list .) }}
{{- end -}}
{{- end -}}

{{/*
The configuration as JSON. A section, input or output that is null is left out: so a later values file takes away what
an earlier one has.
*/}}
{{- define "apsara-bridge.config" -}}
{{- $config := dict -}}
{{- range $section, $value := (default dict .Values.config) -}}
{{- if and (has $section (list "inputs" "outputs")) $value -}}
{{- $plugins := dict -}}
{{- range $name, $plugin := $value -}}
{{- if not (kindIs "invalid" $plugin) -}}
{{- $_ := set $plugins $name $plugin -}}
{{- end -}}
{{- end -}}
{{- $value = $plugins -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $config $section $value -}}
{{- end -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/*
What the configuration says that other objects depend on, as JSON:
  http                       the HTTP input: name, tls, endpoints with path, urls, keyFiles, isSigned, takesVod
  httpNames                  names of all HTTP inputs
  mns                        whether there is a queue
  needsMetadata              whether a queue's key may come from the instance's role
  brokerPorts, queuePorts    where outputs listen; where queues do and what gives their keys
*/}}
{{- define "apsara-bridge.facts" -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
{{- $names := list -}}
{{- $http := dict -}}
{{- $queues := list -}}
{{- $needsMetadata := false -}}
{{- range $name, $input := $config.inputs -}}
{{- if eq (toString $input.kind) "http" -}}
{{- $names = append $names $name -}}
{{- $endpoints := list -}}
{{- range (include "apsara-bridge.list" $input.endpoints | fromJsonArray) -}}
{{- $files := list -}}
{{- $keys := include "apsara-bridge.list" .keys | fromJsonArray -}}
{{- range $keys -}}
{{- if and (kindIs "map" .) .file -}}
{{- $files = append $files .file -}}
{{- end -}}
{{- end -}}
{{- $dialects := include "apsara-bridge.list" .dialects | fromJsonArray -}}
{{- $endpoints = append $endpoints (dict
    "path" (default "/callbacks" .path)
    "urls" (include "apsara-bridge.list" .urls | fromJsonArray)
    "keyFiles" $files
    "isSigned" (gt (len $keys) 0)
    "takesVod" (or (not $dialects) (has "vod" $dialects))) -}}
{{- end -}}
{{- if not $http -}}
{{- $http = dict "name" $name "tls" (not (empty $input.tls)) "endpoints" $endpoints -}}
{{- end -}}
{{- else if eq (toString $input.kind) "mns" -}}
{{- $endpoint := toString $input.endpoint -}}
{{- $default := hasPrefix "http:" $endpoint | ternary 80 443 -}}
{{- $queues = append $queues (include "apsara-bridge.port" (list $endpoint $default) | int) -}}
{{- if and (not $input.credentials) (not $.Values.rrsa.roleName) -}}
{{- $needsMetadata = true -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $brokers := list -}}
{{- range $config.outputs -}}
{{- range (include "apsara-bridge.list" .brokers | fromJsonArray) -}}
{{- $brokers = append $brokers (include "apsara-bridge.port" (list . 9092) | int) -}}
{{- end -}}
{{- range (include "apsara-bridge.list" .servers | fromJsonArray) -}}
{{- $brokers = append $brokers (include "apsara-bridge.port" (list . 4222) | int) -}}
{{- end -}}
{{- end -}}
{{- dict
    "http" $http
    "httpNames" $names
    "mns" (gt (len $queues) 0)
    "needsMetadata" $needsMetadata
    "queuePorts" (append $queues 443 | uniq)
    "brokerPorts" (uniq $brokers) | toJson -}}
{{- end -}}

{{/*
The port of an address, or a default: (list "nats://host:4222" 4222).
*/}}
{{- define "apsara-bridge.port" -}}
{{- $address := index . 0 | toString | replace "://" " " | splitList " " | last | splitList "/" | first -}}
{{- regexFind ":[0-9]+$" $address | trimPrefix ":" | default (index . 1) -}}
{{- end -}}

{{/*
A time of the configuration, as "1m 30s", in milliseconds; "invalid" if it is none.
*/}}
{{- define "apsara-bridge.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $names := dict
    "ms" "ms" "msec" "ms" "millis" "ms" "us" "ms" "usec" "ms" "ns" "ms" "nsec" "ms" "nanos" "ms"
    "s" "s" "sec" "s" "secs" "s" "second" "s" "seconds" "s"
    "m" "m" "min" "m" "mins" "m" "minute" "m" "minutes" "m"
    "h" "h" "hr" "h" "hrs" "h" "hour" "h" "hours" "h"
    "d" "d" "day" "d" "days" "d" -}}
{{- $text := toString . -}}
{{- $total := 0.0 -}}
{{- $isValid := regexMatch "^ *([0-9]+([.][0-9]+)? *[a-z]+ *)+$" $text -}}
{{- range regexFindAll "[0-9.]+ *[a-z]+" $text -1 -}}
{{- $unit := get $names (regexFind "[a-z]+$" .) -}}
{{- if $unit -}}
{{- $total = addf $total (mulf (regexFind "^[0-9.]+" . | float64) (get $units $unit)) -}}
{{- else -}}
{{- $isValid = false -}}
{{- end -}}
{{- end -}}
{{- $isValid | ternary (ceil $total | int64 | toString) "invalid" -}}
{{- end -}}

{{/*
A size, of the bridge ("256MiB", "1GB") or of Kubernetes ("20Gi", "1e9"), in bytes; 0 if it is none that is known.
*/}}
{{- define "apsara-bridge.bytes" -}}
{{- $factors := dict "" 1
    "k" 1e3 "K" 1e3 "KB" 1e3 "M" 1e6 "MB" 1e6 "G" 1e9 "GB" 1e9 "T" 1e12 "TB" 1e12
    "Ki" 1024 "KiB" 1024 "Mi" 1048576 "MiB" 1048576 "Gi" 1073741824 "GiB" 1073741824
    "Ti" 1099511627776 "TiB" 1099511627776 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $number := trimSuffix $unit $text | trim -}}
{{- if and (regexMatch "^[0-9]+([.][0-9]+)?$" $number) (hasKey $factors $unit) -}}
{{- mulf (float64 $number) (get $factors $unit) | int64 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/*
What the chart sets of the configuration, in a second file over the user's.
*/}}
{{- define "apsara-bridge.ownConfig" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
admin:
  listen: {{ include "apsara-bridge.listen" (list . "admin") | quote }}
{{- if $facts.http }}
inputs:
  {{ $facts.http.name }}:
    listen: {{ include "apsara-bridge.listen" (list . "callbacks") | quote }}
{{- end }}
spool:
  enabled: {{ .Values.persistence.enabled }}
  {{- if .Values.persistence.enabled }}
  path: {{ include "apsara-bridge.spoolPath" . }}
  {{- end }}
{{- if not (hasKey (default dict $config.log) "format") }}
log:
  format: json
{{- end }}
{{- if and $facts.http (not (hasKey (default dict $config.shutdown) "delay")) }}
shutdown:
  delay: 5s
{{- end }}
{{- end -}}

{{- define "apsara-bridge.listen" -}}
{{- $values := (index . 0).Values.listen -}}
{{- printf "%s:%d" $values.address (get $values (index . 1) | int) -}}
{{- end -}}

{{- define "apsara-bridge.spoolPath" -}}
/var/lib/apsara-bridge
{{- end -}}

{{- define "apsara-bridge.configPath" -}}
/etc/apsara-bridge
{{- end -}}

{{- define "apsara-bridge.secretsPath" -}}
/run/secrets/apsara-bridge
{{- end -}}

{{/*
Secrets that are mounted, as JSON: name of the folder → {existingSecret, keys}, with that of the quick start.
*/}}
{{- define "apsara-bridge.secrets" -}}
{{- $secrets := dict -}}
{{- range $name, $secret := .Values.secrets -}}
{{- if not (kindIs "invalid" $secret) -}}
{{- $_ := set $secrets $name $secret -}}
{{- end -}}
{{- end -}}
{{- if .Values.quickStart.callbackKey -}}
{{- $_ := set $secrets "callback" (dict "existingSecret" (include "apsara-bridge.quickStartName" .) "keys" (list "key")) -}}
{{- end -}}
{{- toJson $secrets -}}
{{- end -}}

{{/*
How long the bridge may take to stop, in seconds: what the configuration says, a sleep before it, and 12 s, of which
the spool takes five at most for what no bus has confirmed; the rest is for a busy machine.
*/}}
{{- define "apsara-bridge.stopSeconds" -}}
{{- $shutdown := default dict (include "apsara-bridge.config" . | fromJson).shutdown -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $delay := include "apsara-bridge.milliseconds" (default (empty $facts.http | ternary "0s" "5s") $shutdown.delay) -}}
{{- $drain := include "apsara-bridge.milliseconds" (default "20s" $shutdown.drain) -}}
{{- $sleep := dig "preStop" "sleep" "seconds" 0 (default dict .Values.lifecycle) -}}
{{- $milliseconds := add (eq $delay "invalid" | ternary 0 $delay) (eq $drain "invalid" | ternary 0 $drain) -}}
{{- add (divf $milliseconds 1000 | ceil | int64) (int64 $sleep) 12 -}}
{{- end -}}

{{- define "apsara-bridge.workloadKind" -}}
{{- .Values.persistence.enabled | ternary "StatefulSet" "Deployment" -}}
{{- end -}}

{{- define "apsara-bridge.scaleTargetRef" -}}
apiVersion: apps/v1
kind: {{ include "apsara-bridge.workloadKind" . }}
name: {{ include "apsara-bridge.fullname" . }}
{{- end -}}

{{/*
Addresses to type at Alibaba, as a JSON list: those that the configuration checks signatures by, or, where it has none,
what ingress and routes make of the endpoints' paths.
*/}}
{{- define "apsara-bridge.callbackUrls" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $bases := include "apsara-bridge.bases" . | fromJsonArray -}}
{{- $urls := list -}}
{{- range ($facts.http).endpoints -}}
{{- $path := .path -}}
{{- if .urls -}}
{{- $urls = concat $urls .urls -}}
{{- else -}}
{{- range $bases -}}
{{- $urls = append $urls (printf "%s%s" . $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $urls | toJson -}}
{{- end -}}

{{/*
Scheme and host of every way in, as a JSON list.
*/}}
{{- define "apsara-bridge.bases" -}}
{{- $bases := list -}}
{{- if .Values.ingress.enabled -}}
{{- range .Values.ingress.hosts -}}
{{- $bases = append $bases (printf "%s://%s" (empty $.Values.ingress.tls | ternary "http" "https") .) -}}
{{- end -}}
{{- end -}}
{{- range .Values.httpRoutes -}}
{{- if and .enabled (not .httpsRedirect) -}}
{{- range .hostnames -}}
{{- $bases = append $bases (printf "https://%s" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $bases | toJson -}}
{{- end -}}

{{/*
The endpoint that the test posts to, as JSON: path, url, secret and keyFile; empty if there is none that it can sign for.
*/}}
{{- define "apsara-bridge.tested" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $secrets := include "apsara-bridge.secrets" . | fromJson -}}
{{- $prefix := printf "%s/" (include "apsara-bridge.secretsPath" .) -}}
{{- $found := dict -}}
{{- if and .Values.tests.enabled $facts.http (not ($facts.http).tls) -}}
{{- range $facts.http.endpoints -}}
{{- if and .takesVod (not $found) -}}
{{- if not .isSigned -}}
{{- $found = dict "path" .path -}}
{{- else if .urls -}}
{{- $endpoint := . -}}
{{- range .keyFiles -}}
{{- $name := trimPrefix $prefix . | splitList "/" | first -}}
{{- if and (hasPrefix $prefix .) (hasKey $secrets $name) (not $found) -}}
{{- $found = dict "path" $endpoint.path "url" (first $endpoint.urls) "secret" $name "keyFile" . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/*
Namespaces by their names, as a peer of a NetworkPolicy.
*/}}
{{- define "apsara-bridge.namespacePeer" -}}
- namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- toYaml . | nindent 10 }}
{{- end -}}
