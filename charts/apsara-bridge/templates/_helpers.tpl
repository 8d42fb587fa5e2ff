{{/*
Names, labels, images, and facts that the other templates read from the values. _validate.tpl checks the values, _pod.tpl
has the pod.
*/}}

{{/*
Evaluates the templates in the texts of the values, once for all files. Not in `prometheusRule`, whose alerts have
templates of Prometheus, and not in `extraObjects`, which are evaluated as a whole. A text that reads other values comes
after them: first texts that read none, then those with `.Values`, twice because these may read one another, and last
those that use helpers.
*/}}
{{- define "apsara-bridge.render" -}}
{{- if not (hasKey . "isRendered") -}}
{{- $_ := set . "isRendered" true -}}
{{- range $turn := (list 1 2 2 3) -}}
{{- range $key, $value := $.Values -}}
{{- if and (not (has $key (list "prometheusRule" "extraObjects"))) (contains "{{" (toJson $value)) -}}
{{- $_ := set $.Values $key (include "apsara-bridge.rendered" (list $ $value $turn) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
A value whose texts are evaluated, at any depth, as JSON under the key `value`: (list $ value turn). A turn evaluates the
texts that read nothing (1), other values (2), or helpers (3).
*/}}
{{- define "apsara-bridge.rendered" -}}
{{- $root := index . 0 -}}
{{- $value := index . 1 -}}
{{- $turn := index . 2 -}}
{{- if kindIs "string" $value -}}
{{- if contains "{{" $value -}}
{{- $reads := regexMatch "[{][{][^}]*[.]Values" $value | ternary 2 1 -}}
{{- if regexMatch "[{][{][^}]*(include|tpl) " $value -}}
{{- $reads = 3 -}}
{{- end -}}
{{- if eq $reads $turn -}}
{{- $value = tpl $value $root -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "map" $value -}}
{{- $table := dict -}}
{{- range $key, $below := $value -}}
{{- $_ := set $table $key (include "apsara-bridge.rendered" (list $root $below $turn) | fromJson).value -}}
{{- end -}}
{{- $value = $table -}}
{{- else if kindIs "slice" $value -}}
{{- $items := list -}}
{{- range $value -}}
{{- $items = append $items (include "apsara-bridge.rendered" (list $root . $turn) | fromJson).value -}}
{{- end -}}
{{- $value = $items -}}
{{- end -}}
{{- dict "value" $value | toJson -}}
{{- end -}}

{{- define "apsara-bridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/*
At most 50 characters: the name and a hash form a label of the pods, which has at most 63.
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
Labels that select the pods. They never change, because a selector cannot change. The component excludes the pod of the
test.
*/}}
{{- define "apsara-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "apsara-bridge.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: bridge
{{- end -}}

{{/*
Labels of an object, without its component.
*/}}
{{- define "apsara-bridge.commonLabels" -}}
{{- include "apsara-bridge.render" . -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "apsara-bridge.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
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
Labels of an object with a component and labels of its own, which override `commonLabels`: (list $ component labels).
*/}}
{{- define "apsara-bridge.labelsWith" -}}
{{- $common := include "apsara-bridge.commonLabels" (index . 0) | fromYaml -}}
{{- $own := dict "app.kubernetes.io/component" (index . 1) | merge (deepCopy (default dict (index . 2))) -}}
{{- merge $own $common | toYaml -}}
{{- end -}}

{{/*
Labels that the chart sets, as a JSON list.
*/}}
{{- define "apsara-bridge.ownLabels" -}}
{{- $names := list "helm.sh/chart" -}}
{{- range (list "name" "instance" "version" "part-of" "managed-by" "component") -}}
{{- $names = append $names (printf "app.kubernetes.io/%s" .) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/*
The image: registry and repository, then the digest or else the tag.
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
Secrets for pulling images, the global ones first. Each is a text or an object with a name.
*/}}
{{- define "apsara-bridge.imagePullSecrets" -}}
{{- $names := list -}}
{{- range concat (default list (.Values.global).imagePullSecrets) (default list .Values.imagePullSecrets) -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- with uniq $names -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{/*
A value that may be a list, one item or null, as a JSON list.
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
The configuration as JSON. A section, input or output that is null is left out, so that a later values file can remove
it.
*/}}
{{- define "apsara-bridge.config" -}}
{{- include "apsara-bridge.render" . -}}
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
The inputs and outputs of the configuration, as a JSON list. Each has section, name, kind and settings, and what
files/kinds.yaml says about its kind: listeners, addresses and cloud_key. These are empty for a kind that this version of
the chart does not know.
*/}}
{{- define "apsara-bridge.plugins" -}}
{{- $kinds := .Files.Get "files/kinds.yaml" | fromYaml -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
{{- $plugins := list -}}
{{- range $section := (list "inputs" "outputs") -}}
{{- range $name, $settings := (get $config $section | default dict) -}}
{{- $kind := toString $settings.kind -}}
{{- $known := get (get $kinds $section) $kind | default dict -}}
{{- $plugins = append $plugins (dict
    "section" $section
    "name" $name
    "kind" $kind
    "settings" $settings
    "listeners" ($known.listeners | default list)
    "addresses" ($known.addresses | default list)
    "cloud_key" ($known.cloud_key | default "")) -}}
{{- end -}}
{{- end -}}
{{- toJson $plugins -}}
{{- end -}}

{{/*
The values of settings at any depth, as a JSON list of key and value: (list "" settings). A value that is read from a
file or a variable has the key `source` instead of a value. A part of a key that contains dots is in quotes.
*/}}
{{- define "apsara-bridge.leaves" -}}
{{- $key := index . 0 -}}
{{- $value := index . 1 -}}
{{- $leaves := list -}}
{{- if kindIs "map" $value -}}
{{- if and (eq (len $value) 1) (or (kindIs "string" $value.file) (kindIs "string" $value.env)) -}}
{{- $leaves = list (dict "key" $key "source" $value) -}}
{{- else -}}
{{- range $part, $below := $value -}}
{{- $part = contains "." $part | ternary (printf "%q" $part) $part -}}
{{- $part = empty $key | ternary $part (printf "%s.%s" $key $part) -}}
{{- $leaves = concat $leaves (include "apsara-bridge.leaves" (list $part $below) | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" $value -}}
{{- range $index, $below := $value -}}
{{- $leaves = concat $leaves (include "apsara-bridge.leaves" (list (printf "%s[%d]" $key $index) $below) | fromJsonArray) -}}
{{- end -}}
{{- else if not (or (kindIs "invalid" $value) (eq (toString $value) "")) -}}
{{- $leaves = list (dict "key" $key "value" (toString $value)) -}}
{{- end -}}
{{- toJson $leaves -}}
{{- end -}}

{{/*
Those of them that are not read from a file or a variable.
*/}}
{{- define "apsara-bridge.texts" -}}
{{- $texts := list -}}
{{- range (include "apsara-bridge.leaves" . | fromJsonArray) -}}
{{- if not .source -}}
{{- $texts = append $texts . -}}
{{- end -}}
{{- end -}}
{{- toJson $texts -}}
{{- end -}}

{{/*
What a variable or a flag sets, as such texts: (list "outputs.kafka" text). A list or a table is written as in TOML. Of
a table, only the last name of each key is known.
*/}}
{{- define "apsara-bridge.assigned" -}}
{{- $key := index . 0 -}}
{{- /* Kubernetes replaces $(NAME) by the value of another variable. */ -}}
{{- $text := regexReplaceAll "[$][(][A-Za-z0-9_.-]+[)]" (index . 1 | toString) "" | trim -}}
{{- $texts := list -}}
{{- if regexMatch "^[[{]" $text -}}
{{- range (regexFindAll "[A-Za-z0-9_.\"'-]+ *= *[[]? *(\"[^\"]+\"|'[^']+'|[^][{}, \"'=]+)" $text -1) -}}
{{- $name := regexFind "^[^=]+" . | trim | replace "'" "" -}}
{{- $texts = append $texts (dict "key" (printf "%s.%s" $key $name) "value" (regexReplaceAll "^[^=]+= *[[]? *[\"']?" . "")) -}}
{{- end -}}
{{- if and (hasPrefix "[" $text) (not $texts) -}}
{{- $texts = list (dict "key" $key "value" $text) -}}
{{- end -}}
{{- else if $text -}}
{{- $texts = list (dict "key" $key "value" (trimAll "\"'" $text)) -}}
{{- end -}}
{{- toJson $texts -}}
{{- end -}}

{{/*
Those of these texts whose key fits a pattern of files/kinds.yaml, as a JSON list: (list texts pattern).
*/}}
{{- define "apsara-bridge.fitting" -}}
{{- $pattern := index . 1 | regexQuoteMeta | replace "\\[\\]" "([[][0-9]+[]])?" | replace "\\*" ".*" | printf "^%s$" -}}
{{- $fitting := list -}}
{{- range index . 0 -}}
{{- if regexMatch $pattern (replace "\"" "" .key) -}}
{{- $fitting = append $fitting . -}}
{{- end -}}
{{- end -}}
{{- toJson $fitting -}}
{{- end -}}

{{/*
Keys of these values that are secrets, as a JSON list: (list $ leaves). A key counts from the root of the configuration.
A value is a secret if files/kinds.yaml says so about its key, if the last name of the key says so, or if the text itself
does: a private key, or an address with a user. Names of files and addresses are not secret, and neither are ids.
*/}}
{{- define "apsara-bridge.secretKeys" -}}
{{- $leaves := index . 1 -}}
{{- $keys := list -}}
{{- range $section, $kinds := ((index . 0).Files.Get "files/kinds.yaml" | fromYaml) -}}
{{- range $kinds -}}
{{- range .secrets -}}
{{- range (include "apsara-bridge.fitting" (list $leaves (printf "%s.*.%s" $section .)) | fromJsonArray) -}}
{{- $keys = append $keys .key -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $words := "password|passwd|passphrase|secret|jaas|credential|authorization|(^|[_-])token([_-]|$)|(private|access|api|auth)[_-]?key|^keys$" -}}
{{- $harmless := "(^|[_-])(file|path|location|url|uri|endpoint|id)$" -}}
{{- $inText := "-----BEGIN [A-Z ]*PRIVATE KEY|[a-z]://[^/?#@, ]+@" -}}
{{- range $leaves -}}
{{- $name := regexReplaceAll "([[][0-9]+[]])+$" (replace "\"" "" .key) "" | regexFind "[^.]+$" | lower -}}
{{- if or (and (regexMatch $words $name) (not (regexMatch $harmless $name))) (regexMatch $inText (default "" .value)) -}}
{{- $keys = append $keys .key -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $keys) -}}
{{- end -}}

{{/*
What the configuration says that other objects depend on, as JSON:
  listener                   the input that listens: name, key of its address, tls, and endpoints with path, urls,
                             keyFiles, isSigned, takesVod
  listeners                  names of all inputs that listen
  inputKinds                 kinds of the inputs
  needsMetadata              whether an access key may come from the role of the instance
  brokerPorts, queuePorts    where outputs connect to; where inputs connect to, and what gives them their access keys
*/}}
{{- define "apsara-bridge.facts" -}}
{{- $listeners := list -}}
{{- $listener := dict -}}
{{- $kinds := list -}}
{{- $ports := dict "inputs" list "outputs" list -}}
{{- $needsMetadata := false -}}
{{- range $plugin := (include "apsara-bridge.plugins" . | fromJsonArray) -}}
{{- if .addresses -}}
{{- $texts := include "apsara-bridge.texts" (list "" .settings) | fromJsonArray -}}
{{- range $address := .addresses -}}
{{- range (include "apsara-bridge.fitting" (list $texts .key) | fromJsonArray) -}}
{{- $port := include "apsara-bridge.port" (list .value $address.port) | int -}}
{{- $_ := set $ports $plugin.section (append (get $ports $plugin.section) $port) -}}
{{- end -}}
{{- end -}}
{{- /* More servers, for example the one that gives Kafka's client its tokens: sasl.oauthbearer.token.endpoint.url. */ -}}
{{- range $texts -}}
{{- if and (regexMatch "^https?://" .value) (regexMatch "(^|[._-])(url|uri|endpoint)$" (replace "\"" "" .key | lower)) -}}
{{- $_ := set $ports $plugin.section (append (get $ports $plugin.section) (include "apsara-bridge.port" (list .value 443) | int)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* Without an access key, the input asks the cloud for one, over HTTPS. Without RRSA, it also asks the instance. */ -}}
{{- if and .cloud_key (not (get .settings .cloud_key)) -}}
{{- $_ := set $ports .section (append (get $ports .section) 443) -}}
{{- $needsMetadata = or $needsMetadata (not $.Values.rrsa.roleName) -}}
{{- end -}}
{{- if eq .section "inputs" -}}
{{- $kinds = append $kinds .kind -}}
{{- end -}}
{{- if .listeners -}}
{{- $listeners = append $listeners .name -}}
{{- if not $listener -}}
{{- $listener = dict "name" .name "key" (first .listeners) "tls" (not (empty .settings.tls)) "endpoints" (include "apsara-bridge.endpoints" .settings | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict
    "listener" $listener
    "listeners" $listeners
    "inputKinds" (uniq $kinds)
    "needsMetadata" $needsMetadata
    "queuePorts" (uniq $ports.inputs)
    "brokerPorts" (uniq $ports.outputs) | toJson -}}
{{- end -}}

{{/*
The endpoints of an input that is an HTTP server, as a JSON list. Ingress, HTTPRoute, the notes and the test lead to
their paths, so the chart has to know these keys.
*/}}
{{- define "apsara-bridge.endpoints" -}}
{{- $endpoints := list -}}
{{- range (include "apsara-bridge.list" .endpoints | fromJsonArray) -}}
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
{{- toJson $endpoints -}}
{{- end -}}

{{/*
The port of an address. An address without one has that of its scheme, http or https, or else a default:
(list "nats://host:4222" 4222).
*/}}
{{- define "apsara-bridge.port" -}}
{{- $address := index . 0 | toString -}}
{{- $default := hasPrefix "http://" $address | ternary 80 (hasPrefix "https://" $address | ternary 443 (index . 1)) -}}
{{- $host := regexReplaceAll "^[a-z]+://" $address "" | regexFind "^[^/?#]*" -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default $default -}}
{{- end -}}

{{/*
The part of the configuration whose change rolls the pods, as JSON. Empty if none does.
*/}}
{{- define "apsara-bridge.rollsOn" -}}
{{- if kindIs "string" .Values.rollOnConfigChange -}}
{{- include "apsara-bridge.restartConfig" . -}}
{{- else if .Values.rollOnConfigChange -}}
{{- include "apsara-bridge.config" . -}}
{{- end -}}
{{- end -}}

{{/*
The part of the configuration whose change needs a restart, as JSON. The running bridge applies changes of all other
keys.
*/}}
{{- define "apsara-bridge.restartConfig" -}}
{{- $keys := .Files.Get "files/restart-keys.yaml" | fromYaml -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
{{- range $keys.reloadable -}}
{{- include "apsara-bridge.remove" (list $config (splitList "." .)) -}}
{{- end -}}
{{- range $config.inputs -}}
{{- $input := . -}}
{{- range (get $keys.inputs (toString .kind) | default list) -}}
{{- $_ := unset $input . -}}
{{- end -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/*
Removes a key from a table, and a table above it that is then empty: (list table (list "spool" "max_bytes")).
*/}}
{{- define "apsara-bridge.remove" -}}
{{- $table := index . 0 -}}
{{- $key := index . 1 | first -}}
{{- $below := index . 1 | rest -}}
{{- if and $below (kindIs "map" (get $table $key)) -}}
{{- include "apsara-bridge.remove" (list (get $table $key) $below) -}}
{{- end -}}
{{- if or (not $below) (and (kindIs "map" (get $table $key)) (empty (get $table $key))) -}}
{{- $_ := unset $table $key -}}
{{- end -}}
{{- end -}}

{{/*
A time of the configuration, for example "1m 30s", in milliseconds, or "invalid".
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
A size of the bridge ("256MiB", "1GB") or of Kubernetes ("20Gi") in bytes, or 0 if it cannot be read.
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
The keys of the configuration that the chart sets, in a second file that overrides the user's.
*/}}
{{- define "apsara-bridge.ownConfig" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
admin:
  listen: {{ include "apsara-bridge.listen" (list . "admin") | quote }}
{{- with $facts.listener }}
inputs:
  {{ .name }}:
    {{- $setting := include "apsara-bridge.listen" (list $ "callbacks") }}
    {{- range splitList "." .key | reverse }}
    {{- $setting = dict . $setting }}
    {{- end }}
    {{- toYaml $setting | nindent 4 }}
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
{{- if and $facts.listener (not (hasKey (default dict $config.shutdown) "delay")) }}
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
Mounted Secrets as JSON, with that of the quick start: name of the folder → {existingSecret, keys}.
*/}}
{{- define "apsara-bridge.secrets" -}}
{{- include "apsara-bridge.render" . -}}
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
How long the bridge may take to stop, in seconds: the times in the configuration, the sleep of the preStop hook, and
12 s. Spooling unconfirmed events takes at most 5 s of these; the rest is a reserve for a busy machine.
*/}}
{{- define "apsara-bridge.stopSeconds" -}}
{{- $shutdown := default dict (include "apsara-bridge.config" . | fromJson).shutdown -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $delay := include "apsara-bridge.milliseconds" (default (empty $facts.listener | ternary "0s" "5s") $shutdown.delay) -}}
{{- $drain := include "apsara-bridge.milliseconds" (default "20s" $shutdown.drain) -}}
{{- $milliseconds := add (eq $delay "invalid" | ternary 0 $delay) (eq $drain "invalid" | ternary 0 $drain) -}}
{{- add (divf $milliseconds 1000 | ceil | int64) (include "apsara-bridge.sleepSeconds" .) 12 -}}
{{- end -}}

{{- define "apsara-bridge.workloadKind" -}}
{{- .Values.persistence.enabled | ternary "StatefulSet" "Deployment" -}}
{{- end -}}

{{- define "apsara-bridge.scaleTargetRef" -}}
apiVersion: apps/v1
kind: {{ include "apsara-bridge.workloadKind" . }}
name: {{ include "apsara-bridge.fullname" . | quote }}
{{- end -}}

{{/*
The values of the autoscaler that is enabled, as JSON.
*/}}
{{- define "apsara-bridge.scaler" -}}
{{- if .Values.autoscaling.enabled -}}
{{- toJson .Values.autoscaling -}}
{{- else if .Values.keda.enabled -}}
{{- toJson .Values.keda -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/*
The number of pods of the workload. With an autoscaler it is exactly the present one; empty if it is not known, as in a
first installation. The field must not be left out then: an upgrade that removes a field which Helm has set gives the
workload the default of one pod. It must not be another number either, for example a raised minimum: after the first
scaling the field belongs to the autoscaler, and with server-side apply (Helm 4) another value is a conflict. The
autoscaler itself applies a new minimum.
*/}}
{{- define "apsara-bridge.replicas" -}}
{{- $scaler := include "apsara-bridge.scaler" . | fromJson -}}
{{- if not $scaler -}}
{{- .Values.replicaCount -}}
{{- else -}}
{{- $running := lookup "apps/v1" (include "apsara-bridge.workloadKind" .) (include "apsara-bridge.namespace" .) (include "apsara-bridge.fullname" .) -}}
{{- if hasKey (default dict ($running).spec) "replicas" -}}
{{- int $running.spec.replicas -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The lowest number of a pod that does not run. An autoscaler starts the pods below its minimum soon.
*/}}
{{- define "apsara-bridge.firstAbsent" -}}
{{- $scaler := include "apsara-bridge.scaler" . | fromJson -}}
{{- max (include "apsara-bridge.replicas" . | int) ($scaler.minReplicas | default 0 | int) -}}
{{- end -}}

{{/*
Numbers of removed pods whose volumes are to be emptied, as a JSON list: those of `drain.ordinals`, and those of the
claims in the cluster. `lookup` finds no claims without a cluster, for example in helm template.
*/}}
{{- define "apsara-bridge.drained" -}}
{{- $numbers := list -}}
{{- if and .Values.persistence.enabled .Values.drain.enabled -}}
{{- range .Values.drain.ordinals -}}
{{- $numbers = append $numbers (int .) -}}
{{- end -}}
{{- $prefix := include "apsara-bridge.claim" (list . "") -}}
{{- $absent := include "apsara-bridge.firstAbsent" . | int -}}
{{- range (default dict (lookup "v1" "PersistentVolumeClaim" (include "apsara-bridge.namespace" .) "")).items -}}
{{- $number := trimPrefix $prefix .metadata.name -}}
{{- if and (hasPrefix $prefix .metadata.name) (regexMatch "^[0-9]+$" $number) -}}
{{- if ge (int $number) $absent -}}
{{- $numbers = append $numbers (int $number) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $numbers | toJson -}}
{{- end -}}

{{/*
The claim of the pod with a number: (list $ number).
*/}}
{{- define "apsara-bridge.claim" -}}
{{- printf "spool-%s-%v" (include "apsara-bridge.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/*
How an autoscaler removes pods: (list $ behavior isHeld). A spool is published only while its pod runs, so with volumes
it removes none, unless the values say otherwise or a trigger keeps the pods while a spool has events.
*/}}
{{- define "apsara-bridge.behavior" -}}
{{- $behavior := deepCopy (default dict (index . 1)) -}}
{{- if not (hasKey $behavior "scaleDown") -}}
{{- $scaleDown := dict "stabilizationWindowSeconds" 300 "policies" (list (dict "type" "Pods" "value" 1 "periodSeconds" 300)) -}}
{{- if and (index . 0).Values.persistence.enabled (not (index . 2)) -}}
{{- $scaleDown = dict "selectPolicy" "Disabled" -}}
{{- end -}}
{{- $_ := set $behavior "scaleDown" $scaleDown -}}
{{- end -}}
{{- toYaml $behavior -}}
{{- end -}}

{{/*
URLs to enter at Alibaba, as a JSON list: those in the configuration, or, for an endpoint without urls, the hosts of
Ingress and HTTPRoutes with the path of the endpoint.
*/}}
{{- define "apsara-bridge.callbackUrls" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $bases := include "apsara-bridge.bases" . | fromJsonArray -}}
{{- $urls := list -}}
{{- range ($facts.listener).endpoints -}}
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
Scheme and host of each Ingress and HTTPRoute, as a JSON list.
*/}}
{{- define "apsara-bridge.bases" -}}
{{- $bases := list -}}
{{- if .Values.ingress.enabled -}}
{{- range .Values.ingress.hosts -}}
{{- $host := kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "host") . -}}
{{- $bases = append $bases (printf "%s://%s" (empty $.Values.ingress.tls | ternary "http" "https") $host) -}}
{{- end -}}
{{- end -}}
{{- range .Values.httpRoutes -}}
{{- if and . .enabled (not .httpsRedirect) -}}
{{- range .hostnames -}}
{{- $bases = append $bases (printf "https://%s" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $bases | toJson -}}
{{- end -}}

{{/*
The endpoint that the test sends to, as JSON: path, url, keyFile, and where this file comes from: secret, or mount, which
is one of extraVolumeMounts. Empty if the test can sign for none.
*/}}
{{- define "apsara-bridge.tested" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $secrets := include "apsara-bridge.secrets" . | fromJson -}}
{{- $prefix := printf "%s/" (include "apsara-bridge.secretsPath" .) -}}
{{- $found := dict -}}
{{- if and .Values.tests.enabled $facts.listener (not ($facts.listener).tls) -}}
{{- range $facts.listener.endpoints -}}
{{- if and .takesVod (not $found) -}}
{{- if not .isSigned -}}
{{- $found = dict "path" .path -}}
{{- else if .urls -}}
{{- $endpoint := . -}}
{{- range .keyFiles -}}
{{- $name := trimPrefix $prefix . | splitList "/" | first -}}
{{- if and (hasPrefix $prefix .) (hasKey $secrets $name) (not $found) -}}
{{- $found = dict "path" $endpoint.path "url" (first $endpoint.urls) "secret" $name "keyFile" . -}}
{{- else if not $found -}}
{{- $file := . -}}
{{- range $.Values.extraVolumeMounts -}}
{{- if or (eq .mountPath $file) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $file) -}}
{{- $found = dict "path" $endpoint.path "url" (first $endpoint.urls) "mount" . "keyFile" $file -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/*
Namespaces, by name, as a peer of a NetworkPolicy.
*/}}
{{- define "apsara-bridge.namespacePeer" -}}
- namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- toYaml . | nindent 10 }}
{{- end -}}

{{/*
What extraArgs and extraEnv set in the configuration, as a JSON list: by, name as it is written there, key and value.
*/}}
{{- define "apsara-bridge.overrides" -}}
{{- $overrides := list -}}
{{- $flag := "" -}}
{{- range .Values.extraArgs -}}
{{- $argument := toString . -}}
{{- /* Both forms: `--set` and its value as two arguments, and as one. */ -}}
{{- if or (eq $flag "--set") (hasPrefix "--set=" $argument) -}}
{{- $set := trimPrefix "--set=" $argument -}}
{{- $key := regexFind "^[^=]*" $set | trim -}}
{{- $overrides = append $overrides (dict "by" "extraArgs" "name" $key "key" $key "value" (regexReplaceAll "^[^=]*=?" $set "")) -}}
{{- end -}}
{{- $flag = $argument -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "APSARA_BRIDGE__" .name -}}
{{- $overrides = append $overrides (dict "by" "extraEnv" "name" .name "key" (trimPrefix "APSARA_BRIDGE__" .name | lower | replace "__" ".") "value" (default "" .value)) -}}
{{- end -}}
{{- end -}}
{{- toJson $overrides -}}
{{- end -}}

{{/*
Those of them that may set an address to connect to, whose port the NetworkPolicy then does not know, as a JSON list of
names. Not if the values have ports of their own.
*/}}
{{- define "apsara-bridge.unknownPorts" -}}
{{- $names := list -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled $policy.egress.enabled (not $policy.extraEgress) -}}
{{- $pattern := empty $policy.egress.brokerPorts | ternary "^(inputs|outputs)" "^inputs" -}}
{{- range (include "apsara-bridge.overrides" . | fromJsonArray) -}}
{{- if regexMatch (printf "%s([.][^.]+)?([.](brokers|servers|url|endpoint|client)|[.]client[.].*url)?$" $pattern) .key -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}
