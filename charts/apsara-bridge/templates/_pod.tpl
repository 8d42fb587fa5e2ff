{{/*
The pod of the StatefulSet and the Deployment, and the parts that the pod of the test shares with it.
*/}}

{{/*
Arguments of serve and check. A later file overrides an earlier one, and extraArgs override both.
*/}}
{{- define "apsara-bridge.configArgs" -}}
- --config
- {{ include "apsara-bridge.configPath" . }}/bridge.yaml
- --config
- {{ include "apsara-bridge.configPath" . }}/chart.yaml
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Image, variables and mounts. They are the same for both containers, so that check sees what serve will read.
*/}}
{{- define "apsara-bridge.surroundings" -}}
image: {{ include "apsara-bridge.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
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
The volume of a mounted Secret: (list name {existingSecret, keys}).
*/}}
{{- define "apsara-bridge.secretVolume" -}}
{{- $secret := index . 1 -}}
- name: secret-{{ index . 0 }}
  secret:
    secretName: {{ $secret.existingSecret }}
    defaultMode: 0440
    items:
      {{- range $secret.keys }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end -}}

{{- define "apsara-bridge.podTemplate" -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
metadata:
  labels:
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "apsara-bridge.selectorLabels" . | nindent 4 }}
    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
    app.kubernetes.io/part-of: apsara-bridge
    {{- if .Values.rrsa.roleName }}
    pod-identity.alibabacloud.com/injection: "on"
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: bridge
    {{- with include "apsara-bridge.rollsOn" . }}
    checksum/config: {{ list . (include "apsara-bridge.ownConfig" $) | toJson | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "apsara-bridge.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  enableServiceLinks: false
  {{- with include "apsara-bridge.imagePullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ default (include "apsara-bridge.stopSeconds" .) .Values.terminationGracePeriodSeconds }}
  {{- if .Values.checkConfig }}
  initContainers:
    - name: check
      args:
        - check
        {{- include "apsara-bridge.configArgs" . | nindent 8 }}
      {{- include "apsara-bridge.surroundings" . | nindent 6 }}
  {{- end }}
  containers:
    - name: bridge
      args:
        - serve
        {{- include "apsara-bridge.configArgs" . | nindent 8 }}
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
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.livenessProbe }}
      livenessProbe:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.readinessProbe }}
      readinessProbe:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "apsara-bridge.fullname" . }}
    {{- range $name, $secret := (include "apsara-bridge.secrets" . | fromJson) }}
    {{- include "apsara-bridge.secretVolume" (list $name $secret) | nindent 4 }}
    {{- end }}
    {{- if .Values.persistence.enabled }}
    - name: tmp
      emptyDir: {}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
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
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
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
