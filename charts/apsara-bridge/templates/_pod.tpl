{{/*
The pods: that of the StatefulSet and the Deployment, and those of the Jobs and of the test, which share parts with it.
*/}}

{{/*
The files of the configuration, and what overrides them. A later file overrides an earlier one.
*/}}
{{- define "apsara-bridge.configArgs" -}}
{{- with .Values.existingConfigMap.name }}
- --config
- {{ include "apsara-bridge.configPath" $ }}/{{ include "apsara-bridge.existingFile" $ }}
{{- end }}
- --config
- {{ include "apsara-bridge.configPath" . }}/bridge.yaml
- --config
- {{ include "apsara-bridge.configPath" . }}/chart.yaml
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The name of the file from a ConfigMap of the user. Its ending says whether it is TOML or YAML.
*/}}
{{- define "apsara-bridge.existingFile" -}}
{{- hasSuffix ".toml" .Values.existingConfigMap.key | ternary "existing.toml" "existing.yaml" -}}
{{- end -}}

{{/*
Arguments of check: those of serve, and what the chart depends on. extraArgs and variables override all files, and what
they say is known only in the pod.
*/}}
{{- define "apsara-bridge.checkArgs" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
- check
{{- include "apsara-bridge.configArgs" . | trim | nindent 0 }}
- --expect
- admin.listen={{ include "apsara-bridge.listen" (list . "admin") }}
{{- with $facts.listener }}
- --expect
- inputs.{{ .name }}.{{ .key }}={{ include "apsara-bridge.listen" (list $ "callbacks") }}
{{- end }}
- --expect
- spool.enabled={{ .Values.persistence.enabled }}
{{- if .Values.persistence.enabled }}
- --expect
- spool.path={{ include "apsara-bridge.spoolPath" . }}
{{- end }}
- --max-stop
- {{ sub (include "apsara-bridge.graceSeconds" .) (include "apsara-bridge.sleepSeconds" .) }}s
{{- end -}}

{{/*
Image, variables and mounts. They are the same for all containers of the program, so that check sees what serve will
read.
*/}}
{{- define "apsara-bridge.surroundings" -}}
image: {{ include "apsara-bridge.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: {{ include "apsara-bridge.configPath" . }}
    readOnly: true
  {{- range $name, $secret := (include "apsara-bridge.secrets" . | fromJson) }}
  - name: secret-{{ $name }}
    mountPath: {{ include "apsara-bridge.secretsPath" $ }}/{{ $name }}
    readOnly: true
  {{- end }}
  {{- if .Values.persistence.enabled }}
  - name: spool
    mountPath: {{ include "apsara-bridge.spoolPath" . }}
  - name: tmp
    mountPath: /tmp
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
The volumes of these mounts, without that of the spool: (list $ configMap quickStart), with the names of the ConfigMap
and of the Secret of the quick start.
*/}}
{{- define "apsara-bridge.volumes" -}}
{{- $root := index . 0 -}}
{{- $quickStart := index . 2 -}}
- name: config
  {{- if $root.Values.existingConfigMap.name }}
  projected:
    sources:
      - configMap:
          name: {{ $root.Values.existingConfigMap.name | quote }}
          items:
            - key: {{ $root.Values.existingConfigMap.key | quote }}
              path: {{ include "apsara-bridge.existingFile" $root }}
      - configMap:
          name: {{ index . 1 | quote }}
  {{- else }}
  configMap:
    name: {{ index . 1 | quote }}
  {{- end }}
{{- range $name, $secret := (include "apsara-bridge.secrets" $root | fromJson) }}
{{- if eq $secret.existingSecret (include "apsara-bridge.quickStartName" $root) }}
{{- $_ := set $secret "existingSecret" $quickStart }}
{{- end }}
{{ include "apsara-bridge.secretVolume" (list $name $secret) }}
{{- end }}
{{- if $root.Values.persistence.enabled }}
- name: tmp
  emptyDir: {}
{{- end }}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The volume of a mounted Secret: (list name {existingSecret, keys}).
*/}}
{{- define "apsara-bridge.secretVolume" -}}
{{- $secret := index . 1 -}}
- name: secret-{{ index . 0 }}
  secret:
    secretName: {{ $secret.existingSecret | quote }}
    defaultMode: 0440
    items:
      {{- range $secret.keys }}
      - key: {{ . | quote }}
        path: {{ . | quote }}
      {{- end }}
{{- end -}}

{{/*
What all pods of the program have in common, apart from the service account.
*/}}
{{- define "apsara-bridge.podCommon" -}}
enableServiceLinks: false
{{- with include "apsara-bridge.imagePullSecrets" . }}
{{ . }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/*
How long a pod may take to stop, and how much of that its preStop hook takes, in seconds.
*/}}
{{- define "apsara-bridge.graceSeconds" -}}
{{- default (include "apsara-bridge.stopSeconds" .) .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}

{{- define "apsara-bridge.sleepSeconds" -}}
{{- dig "preStop" "sleep" "seconds" 0 (default dict .Values.lifecycle) | int64 -}}
{{- end -}}

{{/*
A probe, without the httpGet of the defaults if the values have another handler.
*/}}
{{- define "apsara-bridge.probe" -}}
{{- $http := default dict .httpGet -}}
{{- $isDefault := and (eq (len $http) 2) (eq (toString $http.port) "admin") (has $http.path (list "/healthz" "/readyz")) -}}
{{- if and $isDefault (or .exec .tcpSocket .grpc) -}}
{{- toYaml (omit . "httpGet") -}}
{{- else -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{/*
How pods are replaced. Only one type has parameters, and a type without them must not keep those of the defaults.
*/}}
{{- define "apsara-bridge.strategy" -}}
{{- if eq (default "RollingUpdate" .type) "RollingUpdate" -}}
{{- toYaml . -}}
{{- else -}}
{{- toYaml (omit . "rollingUpdate") -}}
{{- end -}}
{{- end -}}

{{- define "apsara-bridge.podTemplate" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $labels := include "apsara-bridge.selectorLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ = set $labels "app.kubernetes.io/part-of" "apsara-bridge" -}}
{{- if .Values.rrsa.roleName -}}
{{- $_ = set $labels "pod-identity.alibabacloud.com/injection" "on" -}}
{{- end -}}
metadata:
  labels:
    {{- merge $labels (deepCopy (default dict .Values.podLabels)) (default dict .Values.commonLabels) | toYaml | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: bridge
    {{- with include "apsara-bridge.rollsOn" . }}
    checksum/config: {{ list . (include "apsara-bridge.ownConfig" $) | toJson | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "apsara-bridge.serviceAccountName" . | quote }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  {{- include "apsara-bridge.podCommon" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "apsara-bridge.graceSeconds" . }}
  {{- if or .Values.extraInitContainers .Values.checkConfig }}
  initContainers:
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if .Values.checkConfig }}
    - name: check
      args:
        {{- include "apsara-bridge.checkArgs" . | nindent 8 }}
      {{- include "apsara-bridge.surroundings" . | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - name: bridge
      args:
        - serve
        {{- include "apsara-bridge.configArgs" . | trim | nindent 8 }}
      {{- include "apsara-bridge.surroundings" . | nindent 6 }}
      ports:
        {{- if $facts.listener }}
        - name: callbacks
          containerPort: {{ .Values.listen.callbacks }}
          protocol: TCP
        {{- end }}
        - name: admin
          containerPort: {{ .Values.listen.admin }}
          protocol: TCP
      {{- with .Values.startupProbe }}
      startupProbe:
        {{- include "apsara-bridge.probe" . | nindent 8 }}
      {{- end }}
      {{- with .Values.livenessProbe }}
      livenessProbe:
        {{- include "apsara-bridge.probe" . | nindent 8 }}
      {{- end }}
      {{- with .Values.readinessProbe }}
      readinessProbe:
        {{- include "apsara-bridge.probe" . | nindent 8 }}
      {{- end }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "apsara-bridge.volumes" (list . (include "apsara-bridge.fullname" .) (include "apsara-bridge.quickStartName" .)) | nindent 4 }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- $constraint := . }}
      {{- if not .labelSelector }}
      {{- $constraint = merge (dict "labelSelector" (dict "matchLabels" (include "apsara-bridge.selectorLabels" $ | fromYaml))) . }}
      {{- end }}
      {{- toYaml $constraint | nindent 6 }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/*
The pod that empties the volume of a removed pod: (list $ number). Its configuration is that of the release. The program
reads it only once, so the checksum makes a new Job of a changed one.
*/}}
{{- define "apsara-bridge.drainTemplate" -}}
{{- $root := index . 0 -}}
{{- $labels := merge (dict "app.kubernetes.io/component" "drain") (include "apsara-bridge.selectorLabels" $root | fromYaml) -}}
metadata:
  labels:
    {{- merge $labels (deepCopy (default dict $root.Values.podLabels)) (default dict $root.Values.commonLabels) | toYaml | nindent 4 }}
  annotations:
    checksum/config: {{ include "apsara-bridge.wholeConfig" $root | sha256sum }}
    {{- with $root.Values.drain.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "apsara-bridge.serviceAccountName" $root | quote }}
  automountServiceAccountToken: false
  {{- include "apsara-bridge.podCommon" $root | nindent 2 }}
  {{- with $root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: drain
      args:
        - spool
        - drain
        {{- include "apsara-bridge.configArgs" $root | trim | nindent 8 }}
      {{- include "apsara-bridge.surroundings" $root | nindent 6 }}
  volumes:
    {{- include "apsara-bridge.volumes" (list $root (include "apsara-bridge.fullname" $root) (include "apsara-bridge.quickStartName" $root)) | nindent 4 }}
    - name: spool
      persistentVolumeClaim:
        claimName: {{ include "apsara-bridge.claim" . | quote }}
{{- end -}}

{{/*
All files of the configuration as JSON, also the one from a ConfigMap of the user, if the cluster can be asked.
*/}}
{{- define "apsara-bridge.wholeConfig" -}}
{{- $files := list (include "apsara-bridge.config" .) (include "apsara-bridge.ownConfig" .) -}}
{{- with .Values.existingConfigMap.name -}}
{{- $found := lookup "v1" "ConfigMap" (include "apsara-bridge.namespace" $) . -}}
{{- $files = append $files (get (default dict ($found).data) $.Values.existingConfigMap.key) -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/*
Objects that the pods read, and without which they do not start, as a JSON list of kind/name.
*/}}
{{- define "apsara-bridge.readObjects" -}}
{{- $read := list -}}
{{- range .Values.extraVolumes -}}
{{- $read = append $read (printf "Secret/%v" (dig "secret" "secretName" "" .)) -}}
{{- $read = append $read (printf "ConfigMap/%v" (dig "configMap" "name" "" .)) -}}
{{- $read = append $read (printf "PersistentVolumeClaim/%v" (dig "persistentVolumeClaim" "claimName" "" .)) -}}
{{- $read = append $read (printf "SecretProviderClass/%v" (dig "csi" "volumeAttributes" "secretProviderClass" "" .)) -}}
{{- range (dig "projected" "sources" list .) -}}
{{- $read = append $read (printf "Secret/%v" (dig "secret" "name" "" .)) -}}
{{- $read = append $read (printf "ConfigMap/%v" (dig "configMap" "name" "" .)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnvFrom -}}
{{- $read = append $read (printf "Secret/%v" (dig "secretRef" "name" "" .)) -}}
{{- $read = append $read (printf "ConfigMap/%v" (dig "configMapRef" "name" "" .)) -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- $from := default dict .valueFrom -}}
{{- $read = append $read (printf "Secret/%v" (dig "secretKeyRef" "name" "" $from)) -}}
{{- $read = append $read (printf "ConfigMap/%v" (dig "configMapKeyRef" "name" "" $from)) -}}
{{- end -}}
{{- range (include "apsara-bridge.secrets" . | fromJson) -}}
{{- $read = append $read (printf "Secret/%v" .existingSecret) -}}
{{- end -}}
{{- range (dig "imagePullSecrets" list (include "apsara-bridge.imagePullSecrets" . | fromYaml)) -}}
{{- $read = append $read (printf "Secret/%v" .name) -}}
{{- end -}}
{{- with .Values.existingConfigMap.name -}}
{{- $read = append $read (printf "ConfigMap/%v" .) -}}
{{- end -}}
{{- if not .Values.serviceAccount.create -}}
{{- $read = append $read (printf "ServiceAccount/%v" (include "apsara-bridge.serviceAccountName" .)) -}}
{{- end -}}
{{- uniq $read | toJson -}}
{{- end -}}

{{/*
Those of them that `extraObjects` has, as a JSON list of kind/name. An object of another API than that of Kubernetes, for
example an ExternalSecret or a Certificate, may create a Secret or a ConfigMap with its own name or with one that it names.
*/}}
{{- define "apsara-bridge.selfMade" -}}
{{- $namespace := include "apsara-bridge.namespace" . -}}
{{- $made := list -}}
{{- range .Values.extraObjects -}}
{{- range regexSplit "(?m)^---.*$" (tpl (kindIs "string" . | ternary . (toYaml .)) $) -1 -}}
{{- $object := fromYaml . -}}
{{- range (eq (toString $object.kind) "List" | ternary (default list $object.items) (list $object)) -}}
{{- $metadata := default dict .metadata -}}
{{- if eq (default $namespace $metadata.namespace) $namespace -}}
{{- $made = append $made (printf "%v/%v" .kind $metadata.name) -}}
{{- $group := regexFind "^[^/]*/" (toString .apiVersion) | trimSuffix "/" -}}
{{- if and (contains "." $group) (not (hasSuffix ".k8s.io" $group)) -}}
{{- $target := default dict (default dict .spec).target -}}
{{- range (list $metadata.name (default dict .spec).secretName (kindIs "map" $target | ternary $target dict).name) -}}
{{- $made = append (append $made (printf "Secret/%v" .)) (printf "ConfigMap/%v" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $selfMade := list -}}
{{- range (include "apsara-bridge.readObjects" . | fromJsonArray) -}}
{{- if and (has . $made) (not (hasSuffix "/" .)) -}}
{{- $selfMade = append $selfMade . -}}
{{- end -}}
{{- end -}}
{{- toJson $selfMade -}}
{{- end -}}

{{/*
Whether the configuration is checked before an installation or upgrade. Not if the pods read an object that the release
itself creates: it does not exist yet, or is still the old one.
*/}}
{{- define "apsara-bridge.hasCheckJob" -}}
{{- and .Values.checkJob.enabled (include "apsara-bridge.selfMade" . | fromJsonArray | empty) -}}
{{- end -}}

{{/*
The data of the ConfigMap: the configuration of the user, and the keys that the chart sets.
*/}}
{{- define "apsara-bridge.configData" -}}
bridge.yaml: |
  {{- include "apsara-bridge.config" . | fromJson | toYaml | nindent 2 }}
chart.yaml: |
  # Overrides bridge.yaml. Keys that the pod and the Services depend on, and defaults of the chart.
  {{- include "apsara-bridge.ownConfig" . | nindent 2 }}
{{- end -}}
