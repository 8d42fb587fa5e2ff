{{/*
Checks of the values. All errors are reported together, one per line, with the key and what to do.
*/}}

{{- define "apsara-bridge.validate" -}}
{{- include "apsara-bridge.render" . -}}
{{- $wrong := list -}}
{{- range (list "config" "names" "secrets" "texts" "overrides" "workload" "ways" "scaling" "monitoring") -}}
{{- $wrong = concat $wrong (include (printf "apsara-bridge.wrong.%s" .) $ | fromJsonArray) -}}
{{- end -}}
{{- with $wrong -}}
{{- printf "\n\n%s cannot be installed with these values:\n  - %s\n" (include "apsara-bridge.fullname" $) (join "\n  - " .) | fail -}}
{{- end -}}
{{- end -}}

{{- define "apsara-bridge.wrong.config" -}}
{{- $wrong := list -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $kinds := .Files.Get "files/kinds.yaml" | fromYaml -}}
{{- $isWhole := empty .Values.existingConfigMap.name -}}
{{- if and (empty $config) $isWhole -}}
{{- $wrong = append $wrong "config is empty: the bridge needs an input, an output and a route. The README of the chart has an example" -}}
{{- else -}}
{{- if and (empty $config.inputs) $isWhole -}}
{{- $wrong = append $wrong (printf "config.inputs is empty: add an input, of kind %s" (keys $kinds.inputs | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and (empty $config.outputs) $isWhole -}}
{{- $wrong = append $wrong (printf "config.outputs is empty: add an output, of kind %s" (keys $kinds.outputs | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and (empty $config.routes) $isWhole -}}
{{- $wrong = append $wrong "config.routes is empty: without a route no event is published. A route that has only `name` and `to` accepts every event" -}}
{{- end -}}
{{- if gt (len $facts.listeners) 1 -}}
{{- $wrong = append $wrong (printf "config.inputs has several inputs that listen (%s), but the Service has one port for callbacks: use one input with several endpoints" (join ", " $facts.listeners)) -}}
{{- end -}}

{{- if and $facts.listener (not $facts.listener.endpoints) $isWhole -}}
{{- $wrong = append $wrong (printf "config.inputs.%s.endpoints is empty: add at least one, with path, urls and keys" $facts.listener.name) -}}
{{- end -}}

{{- if and $facts.listener (eq (int .Values.listen.callbacks) (int .Values.listen.admin)) -}}
{{- $wrong = append $wrong (printf "listen.callbacks and listen.admin are both %d: set different ports, so that metrics are not reachable from outside" (int .Values.listen.admin)) -}}
{{- end -}}

{{- /* Keys that chart.yaml sets, because other objects depend on them. */ -}}
{{- $listen := include "apsara-bridge.listen" (list . "admin") -}}
{{- with ($config.admin).listen -}}
{{- if ne . $listen -}}
{{- $wrong = append $wrong (printf "config.admin.listen is %s, but the chart sets it to %s for the probes and the Service: remove it, and set listen.admin instead" . $listen) -}}
{{- end -}}
{{- end -}}
{{- with $facts.listener -}}
{{- $listen := include "apsara-bridge.listen" (list $ "callbacks") -}}
{{- $texts := include "apsara-bridge.texts" (list "" (get $config.inputs .name)) | fromJsonArray -}}
{{- range (include "apsara-bridge.fitting" (list $texts .key) | fromJsonArray) -}}
{{- if ne (toString .value) $listen -}}
{{- $wrong = append $wrong (printf "config.inputs.%s.%s is %v, but the chart sets it to %s for the Service: remove it, and set listen.callbacks instead" $facts.listener.name .key .value $listen) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with ($config.spool).path -}}
{{- if ne . (include "apsara-bridge.spoolPath" $) -}}
{{- $wrong = append $wrong (printf "config.spool.path is %s, but the volume is mounted at %s: remove it" . (include "apsara-bridge.spoolPath" $)) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (default dict $config.spool) "enabled" -}}
{{- if and $config.spool.enabled (not .Values.persistence.enabled) -}}
{{- $wrong = append $wrong "config.spool.enabled is true, but persistence.enabled is false: without a volume the spool is lost with the pod" -}}
{{- else if and (not $config.spool.enabled) .Values.persistence.enabled -}}
{{- $wrong = append $wrong "config.spool.enabled is false, but persistence.enabled is true: to run without a spool, set persistence.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- range $key := (list "delay" "drain") -}}
{{- $time := get (default dict $config.shutdown) $key -}}
{{- if and $time (eq (include "apsara-bridge.milliseconds" $time) "invalid") -}}
{{- $wrong = append $wrong (printf "config.shutdown.%s is an invalid time: `%v`: expected a number with a unit, for example 20s or 1m 30s" $key $time) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.names" -}}
{{- $wrong := list -}}
{{- $name := include "apsara-bridge.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $wrong = append $wrong (printf "the objects would be called %s, which is no valid name of a Service: set fullnameOverride to lower-case letters, digits and `-`, beginning with a letter" $name) -}}
{{- end -}}
{{- $named := dict "existingConfigMap.name" .Values.existingConfigMap.name "serviceAccount.name" .Values.serviceAccount.name "namespaceOverride" .Values.namespaceOverride -}}
{{- range (list "serviceMonitor" "podMonitor" "prometheusRule" "dashboard") -}}
{{- $_ := set $named (printf "%s.namespace" .) (get $.Values .).namespace -}}
{{- end -}}
{{- range $name, $secret := .Values.secrets -}}
{{- if $secret -}}
{{- $_ := set $named (printf "secrets.%s.existingSecret" $name) $secret.existingSecret -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := $named -}}
{{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" $value)) -}}
{{- $wrong = append $wrong (printf "%s is %q: expected a name of lower-case letters, digits, `-` and `.`" $key $value) -}}
{{- end -}}
{{- end -}}

{{- /* Two labels with one name are an invalid object. */ -}}
{{- $own := include "apsara-bridge.ownLabels" . | fromJsonArray -}}
{{- $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels "service.labels" .Values.service.labels "adminService.labels" .Values.adminService.labels "ingress.labels" .Values.ingress.labels "serviceMonitor.labels" .Values.serviceMonitor.labels "podMonitor.labels" .Values.podMonitor.labels "prometheusRule.labels" .Values.prometheusRule.labels "dashboard.labels" .Values.dashboard.labels -}}
{{- range $name, $route := .Values.httpRoutes -}}
{{- if $route -}}
{{- $_ := set $labels (printf "httpRoutes.%s.labels" $name) $route.labels -}}
{{- end -}}
{{- end -}}
{{- range $key, $table := $labels -}}
{{- range $label, $_ := $table -}}
{{- if has $label $own -}}
{{- $wrong = append $wrong (printf "%s sets %s, which the chart sets itself: remove it, and use nameOverride for another name" $key $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range (list "serviceMonitor" "podMonitor" "prometheusRule" "dashboard") -}}
{{- range $label, $_ := (get $.Values .).labels -}}
{{- if hasKey (default dict $.Values.commonLabels) $label -}}
{{- $wrong = append $wrong (printf "commonLabels and labels of the monitoring both set %s: set it in one place" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.secrets" -}}
{{- $wrong := list -}}
{{- range $name, $secret := .Values.secrets -}}
{{- if not (kindIs "invalid" $secret) -}}
{{- if not $secret.existingSecret -}}
{{- $wrong = append $wrong (printf "secrets.%s has no Secret: set secrets.%s.existingSecret" $name $name) -}}
{{- end -}}
{{- if not $secret.keys -}}
{{- $wrong = append $wrong (printf "secrets.%s has no keys: list the keys to mount in secrets.%s.keys" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* The schema would print the key. */ -}}
{{- if not (regexMatch "^\\S{0,32}$" .Values.quickStart.callbackKey) -}}
{{- $wrong = append $wrong "quickStart.callbackKey is invalid: expected at most 32 characters without a space" -}}
{{- end -}}
{{- if and .Values.quickStart.callbackKey (default dict .Values.secrets).callback -}}
{{- $wrong = append $wrong "quickStart.callbackKey and secrets.callback are both set, and both mount the folder callback: remove quickStart.callbackKey" -}}
{{- end -}}

{{- /* Every file that the configuration names must be mounted. */ -}}
{{- $secrets := include "apsara-bridge.secrets" . | fromJson -}}
{{- $path := include "apsara-bridge.secretsPath" . -}}
{{- $mounted := list -}}
{{- range .Values.extraVolumeMounts -}}
{{- $mounted = append $mounted .mountPath -}}
{{- end -}}
{{- range regexFindAll (printf "\"%s/[^\"]+\"" $path) (include "apsara-bridge.config" .) -1 | uniq -}}
{{- $file := trimAll "\"" . -}}
{{- $isMounted := false -}}
{{- range $mounted -}}
{{- if or (eq . $file) (hasPrefix (printf "%s/" (trimSuffix "/" .)) $file) -}}
{{- $isMounted = true -}}
{{- end -}}
{{- end -}}
{{- $parts := trimPrefix (printf "%s/" $path) $file | splitList "/" -}}
{{- $name := first $parts -}}
{{- $key := rest $parts | join "/" -}}
{{- if not $isMounted -}}
{{- if not (hasKey $secrets $name) -}}
{{- $wrong = append $wrong (printf "config names the file %s, but it is not mounted: add secrets.%s" $file $name) -}}
{{- else if and (get $secrets $name).keys (not (has $key (get $secrets $name).keys)) -}}
{{- $wrong = append $wrong (printf "config names the file %s, but it is not mounted: add `%s` to secrets.%s.keys" $file $key $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/*
A secret as text would be stored in a ConfigMap or in the specification of the pods, which many people can read.
*/}}
{{- define "apsara-bridge.wrong.texts" -}}
{{- $wrong := list -}}
{{- $remedy := printf "put it into a Secret, add that to `secrets`, and write {file: %s/NAME/KEY}" (include "apsara-bridge.secretsPath" .) -}}
{{- $leaves := include "apsara-bridge.leaves" (list "" (include "apsara-bridge.config" . | fromJson)) | fromJsonArray -}}
{{- $secrets := include "apsara-bridge.secretKeys" (list $ $leaves) | fromJsonArray -}}
{{- $variables := list -}}
{{- range $leaves -}}
{{- if has .key $secrets -}}
{{- if not .source -}}
{{- $wrong = append $wrong (printf "config.%s is a secret as text, and the configuration is stored in a ConfigMap: %s here" .key $remedy) -}}
{{- else if .source.env -}}
{{- $variables = append $variables .source.env -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Both forms: `--set` and its value as two arguments, and as one. */ -}}
{{- $flag := "" -}}
{{- range .Values.extraArgs -}}
{{- $argument := toString . -}}
{{- if or (eq $flag "--set") (hasPrefix "--set=" $argument) -}}
{{- $set := trimPrefix "--set=" $argument -}}
{{- $texts := include "apsara-bridge.assigned" (list (regexFind "^[^=]*" $set | trim) (regexReplaceAll "^[^=]*=?" $set "")) | fromJsonArray -}}
{{- range (include "apsara-bridge.secretKeys" (list $ $texts) | fromJsonArray) -}}
{{- $wrong = append $wrong (printf "extraArgs sets %s to a secret as text, and arguments are shown with the pod: %s for that key in `config`" . $remedy) -}}
{{- end -}}
{{- end -}}
{{- $flag = $argument -}}
{{- end -}}

{{- range .Values.extraEnv -}}
{{- $name := toString .name -}}
{{- $key := hasPrefix "APSARA_BRIDGE__" $name | ternary (trimPrefix "APSARA_BRIDGE__" $name | lower | replace "__" ".") $name -}}
{{- $texts := include "apsara-bridge.assigned" (list $key (default "" .value)) | fromJsonArray -}}
{{- if and $texts (or (has $name $variables) (include "apsara-bridge.secretKeys" (list $ $texts) | fromJsonArray)) -}}
{{- $wrong = append $wrong (printf "extraEnv has a secret as text, %s, and variables are shown with the pod: replace `value` by `valueFrom` with a secretKeyRef" $name) -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/*
What arguments and variables must not say, because Services, probes, volumes and the grace period depend on it. The init
container checks what cannot be seen here.
*/}}
{{- define "apsara-bridge.wrong.overrides" -}}
{{- $wrong := list -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $keys := list "admin.listen" "spool.enabled" "spool.path" "shutdown.delay" "shutdown.drain" -}}
{{- range $facts.listeners -}}
{{- $keys = append $keys (printf "inputs.%s.%s" . $facts.listener.key) -}}
{{- end -}}
{{- $kinds := include "apsara-bridge.listenerKinds" . | fromJsonArray -}}
{{- range $one := (include "apsara-bridge.overrides" . | fromJsonArray) -}}
{{- $set := list $one.key -}}
{{- range (include "apsara-bridge.assigned" (list $one.key $one.value) | fromJsonArray) -}}
{{- $set = append $set .key -}}
{{- /* A second input that listens. */ -}}
{{- $isOther := and (regexMatch "^inputs([.].+)?[.]kind$" .key) (ne .key (printf "inputs.%s.kind" (default "" $facts.listener.name))) -}}
{{- if and $isOther (has (trimAll "\"'" .value) $kinds) -}}
{{- $wrong = append $wrong (printf "%s sets %s to an input that listens, but Services and policies are derived from `config`: add the input there, or an endpoint to the one that it has" $one.by (eq $one.by "extraEnv" | ternary $one.name .key)) -}}
{{- end -}}
{{- end -}}
{{- range $key := $keys -}}
{{- if has (lower $key) $set -}}
{{- $wrong = append $wrong (printf "%s sets %s, but the chart needs its value: set it in `config`, `listen` or `persistence`" $one.by (eq $one.by "extraEnv" | ternary $one.name $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $wrong) -}}
{{- end -}}

{{- define "apsara-bridge.wrong.workload" -}}
{{- $wrong := list -}}
{{- $name := include "apsara-bridge.fullname" . -}}
{{- $namespace := include "apsara-bridge.namespace" . -}}
{{- $needed := include "apsara-bridge.stopSeconds" . | int64 -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int64 .) $needed -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %d, but stopping may take %d s (shutdown.delay, shutdown.drain and 12 s): remove it, or shorten config.shutdown" (int64 .) $needed) -}}
{{- end -}}
{{- end -}}
{{- /* A handler that the values add replaces the default one, but not one of their own. */ -}}
{{- range $name := (list "startupProbe" "livenessProbe" "readinessProbe") -}}
{{- with (get $.Values $name) -}}
{{- $handlers := list -}}
{{- $probe := include "apsara-bridge.probe" . | fromYaml -}}
{{- range (list "exec" "grpc" "httpGet" "tcpSocket") -}}
{{- if and (hasKey $probe .) (not (kindIs "invalid" (get $probe .))) -}}
{{- $handlers = append $handlers . -}}
{{- end -}}
{{- end -}}
{{- if gt (len $handlers) 1 -}}
{{- $wrong = append $wrong (printf "%s has several handlers, %s: set only one" $name (join " and " $handlers)) -}}
{{- else if not $handlers -}}
{{- $wrong = append $wrong (printf "%s has no handler: set httpGet, tcpSocket, grpc or exec, or %s to null" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range (list .Values.extraContainers .Values.extraInitContainers) -}}
{{- range . -}}
{{- if has .name (list "bridge" "check") -}}
{{- $wrong = append $wrong (printf "a container of extraContainers or extraInitContainers is called %s, which is the name of one of the chart: rename it" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.persistence.whenScaled "Delete" -}}
{{- $wrong = append $wrong "persistence.whenScaled is Delete, but the volume of a removed pod may have events that were acknowledged and not yet published: remove it, and delete claims with kubectl when their spools are empty" -}}
{{- end -}}
{{- if and .Values.drain.ordinals (not .Values.persistence.enabled) -}}
{{- $wrong = append $wrong "drain.ordinals is set, but persistence.enabled is false, so that there are no volumes: remove it" -}}
{{- end -}}
{{- $absent := include "apsara-bridge.firstAbsent" . | int -}}
{{- range .Values.drain.ordinals -}}
{{- if lt (int .) $absent -}}
{{- $wrong = append $wrong (printf "drain.ordinals has %d, but the pod with that number runs and publishes its events itself: expected at least %d" (int .) $absent) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.rrsa.roleName (not .Values.serviceAccount.create) (not .Values.rrsa.serviceAccountIsAnnotated) -}}
{{- $wrong = append $wrong (printf "rrsa.roleName is set, but serviceAccount.create is false, and the chart does not annotate the service account %s: annotate it with pod-identity.alibabacloud.com/role-name=%s, and set rrsa.serviceAccountIsAnnotated" (include "apsara-bridge.serviceAccountName" .) .Values.rrsa.roleName) -}}
{{- end -}}
{{- if and (eq .Values.dnsPolicy "None") (not .Values.dnsConfig.nameservers) -}}
{{- $wrong = append $wrong "dnsPolicy is None, but dnsConfig.nameservers is empty: add a name server" -}}
{{- end -}}

{{- /* An upgrade cannot change the kind of the workload. `lookup` finds nothing without a cluster, for example in helm template. */ -}}
{{- $other := .Values.persistence.enabled | ternary "Deployment" "StatefulSet" -}}
{{- $found := lookup "apps/v1" $other $namespace $name -}}
{{- if eq (dig "metadata" "annotations" "meta.helm.sh/release-name" "" (default dict $found)) .Release.Name -}}
{{- if .Values.persistence.enabled -}}
{{- $wrong = append $wrong "persistence.enabled is true, but the release runs as a Deployment, and an upgrade cannot change it into a StatefulSet: uninstall the release and install it again" -}}
{{- else -}}
{{- $wrong = append $wrong "persistence.enabled is false, but the release runs as a StatefulSet, and the events in the spools on its volumes would stay there: wait until apsara_bridge_spool_events is 0 on every pod, replay or delete the dead letters, then uninstall the release and install it again. Its volumes stay until you delete them" -}}
{{- end -}}
{{- end -}}
{{- if .Values.persistence.enabled -}}
{{- $running := lookup "apps/v1" "StatefulSet" $namespace $name -}}
{{- range (dig "spec" "volumeClaimTemplates" list (default dict $running)) -}}
{{- if eq .metadata.name "spool" -}}
{{- $is := dig "resources" "requests" "storage" "" .spec -}}
{{- $isBytes := include "apsara-bridge.bytes" $is | int64 -}}
{{- $wantedBytes := include "apsara-bridge.bytes" $.Values.persistence.size | int64 -}}
{{- if and $isBytes $wantedBytes (ne $isBytes $wantedBytes) -}}
{{- $wrong = append $wrong (printf "persistence.size is %v, but the volumes were created with %v, and the volume template of a StatefulSet cannot change: the README of the chart explains how to enlarge volumes" $.Values.persistence.size $is) -}}
{{- end -}}
{{- /* The server would refuse these changes too, with a less clear message and a failed revision. */ -}}
{{- $class := hasKey .spec "storageClassName" | ternary (default "-" .spec.storageClassName) "" -}}
{{- if ne $class (default "" $.Values.persistence.storageClassName) -}}
{{- $wrong = append $wrong (printf "persistence.storageClassName is %q, but the volumes were created with %q, and the volume template of a StatefulSet cannot change: set the old value again" $.Values.persistence.storageClassName $class) -}}
{{- end -}}
{{- if ne (toJson (default (list "ReadWriteOnce") .spec.accessModes)) (toJson $.Values.persistence.accessModes) -}}
{{- $wrong = append $wrong (printf "persistence.accessModes is %s, but the volumes were created with %s, and the volume template of a StatefulSet cannot change: set the old value again" (toJson $.Values.persistence.accessModes) (toJson .spec.accessModes)) -}}
{{- end -}}
{{- if ne (toJson (default dict .metadata.annotations)) (toJson (default dict $.Values.persistence.annotations)) -}}
{{- $wrong = append $wrong (printf "persistence.annotations is %s, but the volumes were created with %s, and the volume template of a StatefulSet cannot change: set the old value again, and annotate the claims with kubectl" (toJson $.Values.persistence.annotations) (toJson (default dict .metadata.annotations))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/*
Kinds of inputs that listen, as a JSON list.
*/}}
{{- define "apsara-bridge.listenerKinds" -}}
{{- $kinds := list -}}
{{- range $kind, $known := (.Files.Get "files/kinds.yaml" | fromYaml).inputs -}}
{{- if $known.listeners -}}
{{- $kinds = append $kinds $kind -}}
{{- end -}}
{{- end -}}
{{- toJson $kinds -}}
{{- end -}}

{{- define "apsara-bridge.wrong.ways" -}}
{{- $wrong := list -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $admin := include "apsara-bridge.adminName" . -}}
{{- $kinds := include "apsara-bridge.listenerKinds" . | fromJsonArray -}}
{{- $noListener := printf "but config has no input that listens: add one of kind %s" (join " or " $kinds) -}}
{{- $service := .Values.service -}}
{{- $families := default list $service.ipFamilies -}}
{{- if eq $service.type "ClusterIP" -}}
{{- range (list "nodePort" "externalTrafficPolicy") -}}
{{- if get $service . -}}
{{- $wrong = append $wrong (printf "service.%s is set, but service.type is ClusterIP: remove it, or set service.type to NodePort or LoadBalancer" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if ne $service.type "LoadBalancer" -}}
{{- range (list "loadBalancerClass" "loadBalancerSourceRanges") -}}
{{- if get $service . -}}
{{- $wrong = append $wrong (printf "service.%s is set, but service.type is %s: remove it, or set service.type to LoadBalancer" . $service.type) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (or (has "IPv6" $families) (has $service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) (eq .Values.listen.address "0.0.0.0") -}}
{{- $wrong = append $wrong "service has addresses of IPv6, but listen.address is 0.0.0.0, which accepts IPv4 only: set listen.address to [::], which accepts both" -}}
{{- end -}}
{{- if and (eq (len $families) 2) (not (has $service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) -}}
{{- $wrong = append $wrong "service.ipFamilies has two families: set service.ipFamilyPolicy to PreferDualStack or RequireDualStack" -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}
{{- if not $facts.listener -}}
{{- $wrong = append $wrong (printf "ingress.enabled is true, %s" $noListener) -}}
{{- end -}}
{{- if not (compact (default list .Values.ingress.hosts)) -}}
{{- $wrong = append $wrong "ingress.hosts is empty: add the host of the URL that you enter at Alibaba" -}}
{{- end -}}
{{- $areKnown := or .Values.ingress.paths ($facts.listener).endpoints -}}
{{- range .Values.ingress.hosts -}}
{{- if and $facts.listener (not (or $areKnown (and (kindIs "map" .) .paths))) -}}
{{- $wrong = append $wrong "ingress has no paths, and config has no endpoints: set ingress.paths to the paths in the ConfigMap" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $route := (default dict .Values.httpRoutes) -}}
{{- if and $route $route.enabled -}}
{{- if not $facts.listener -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.enabled is true, %s" $name $noListener) -}}
{{- end -}}
{{- if and $facts.listener (not $facts.listener.endpoints) (not $route.matches) -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.matches is empty, and config has no endpoints: set it to the paths in the ConfigMap" $name) -}}
{{- end -}}
{{- if not $route.parentRefs -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.parentRefs is empty: add the Gateway of the route" $name) -}}
{{- end -}}
{{- if contains (printf "\"%s\"" $admin) (toJson (default list $route.additionalRules)) -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.additionalRules names the Service %s: the admin port must not be reachable from outside the cluster" $name $admin) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- if and $facts.listener (not $policy.gatewayNamespaces) (not $policy.gatewayPeers) -}}
{{- $wrong = append $wrong "networkPolicy blocks all callbacks: add the namespace of the gateway to networkPolicy.gatewayNamespaces, or addresses to networkPolicy.gatewayPeers" -}}
{{- end -}}
{{- range (list "serviceMonitor" "podMonitor") -}}
{{- if and (get $.Values .).enabled (not $policy.monitoringNamespaces) (not $policy.monitoringPeers) -}}
{{- $wrong = append $wrong (printf "%s.enabled is true, but networkPolicy blocks all scrapes: add the namespace of Prometheus to networkPolicy.monitoringNamespaces" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.scaling" -}}
{{- $wrong := list -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $pdb := .Values.podDisruptionBudget -}}
{{- if $pdb.enabled -}}
{{- $hasMin := not (kindIs "invalid" $pdb.minAvailable) -}}
{{- $hasMax := not (kindIs "invalid" $pdb.maxUnavailable) -}}
{{- if and $hasMin $hasMax -}}
{{- $wrong = append $wrong "podDisruptionBudget has both minAvailable and maxUnavailable: set only one of them" -}}
{{- else if not (or $hasMin $hasMax) -}}
{{- $wrong = append $wrong "podDisruptionBudget has neither minAvailable nor maxUnavailable: set one of them, for example maxUnavailable to 1" -}}
{{- end -}}
{{- end -}}
{{- $hpa := .Values.autoscaling -}}
{{- $keda := .Values.keda -}}
{{- /* A share of a request that does not exist cannot be computed. */ -}}
{{- $shares := list -}}
{{- if $hpa.enabled -}}
{{- $shares = list (list "autoscaling.targetCPUUtilizationPercentage" "cpu" $hpa.targetCPUUtilizationPercentage) (list "autoscaling.targetMemoryUtilizationPercentage" "memory" $hpa.targetMemoryUtilizationPercentage) -}}
{{- else if $keda.enabled -}}
{{- range $index, $trigger := $keda.triggers -}}
{{- if has $trigger.type (list "cpu" "memory") -}}
{{- $type := default (default "Utilization" ($trigger.metadata).type) $trigger.metricType -}}
{{- $shares = append $shares (list (printf "keda.triggers[%d]" $index) $trigger.type (eq $type "Utilization")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $shares -}}
{{- $resource := index . 1 -}}
{{- if and (index . 2) (not (get (default dict ($.Values.resources).requests) $resource)) (not (get (default dict ($.Values.resources).limits) $resource)) -}}
{{- $wrong = append $wrong (printf "%s is a share of the request, but resources.requests.%s is empty: set it" (index . 0) $resource) -}}
{{- end -}}
{{- end -}}
{{- if and $hpa.enabled $keda.enabled -}}
{{- $wrong = append $wrong "autoscaling.enabled and keda.enabled are both true: disable autoscaling, because KEDA creates its own HorizontalPodAutoscaler" -}}
{{- end -}}
{{- if $hpa.enabled -}}
{{- if lt (int $hpa.maxReplicas) (int $hpa.minReplicas) -}}
{{- $wrong = append $wrong (printf "autoscaling.maxReplicas is %v: expected at least autoscaling.minReplicas, which is %v" $hpa.maxReplicas $hpa.minReplicas) -}}
{{- end -}}
{{- if not (or $hpa.targetCPUUtilizationPercentage $hpa.targetMemoryUtilizationPercentage $hpa.metrics) -}}
{{- $wrong = append $wrong "autoscaling has no metric: set autoscaling.targetCPUUtilizationPercentage or autoscaling.metrics" -}}
{{- end -}}
{{- end -}}
{{- if $keda.enabled -}}
{{- if lt (int $keda.maxReplicas) (int $keda.minReplicas) -}}
{{- $wrong = append $wrong (printf "keda.maxReplicas is %v: expected at least keda.minReplicas, which is %v" $keda.maxReplicas $keda.minReplicas) -}}
{{- end -}}
{{- if and $facts.listener (eq (int $keda.minReplicas) 0) -}}
{{- $wrong = append $wrong "keda.minReplicas is 0, but without a pod nothing answers callbacks over HTTP: set it to at least 1" -}}
{{- end -}}
{{- if and (eq (int $keda.minReplicas) 0) .Values.persistence.enabled -}}
{{- $wrong = append $wrong "keda.minReplicas is 0, but the events in the spool of the last pod would wait on its volume: set it to at least 1, or persistence.enabled to false" -}}
{{- end -}}
{{- $byBridge := or $keda.prometheus.callbacksPerReplica $keda.prometheus.messagesPerReplica -}}
{{- if not (or $byBridge $keda.triggers) -}}
{{- $wrong = append $wrong "keda has no trigger: set keda.prometheus.callbacksPerReplica, keda.prometheus.messagesPerReplica or keda.triggers" -}}
{{- end -}}
{{- if and $byBridge (not $keda.prometheus.serverAddress) -}}
{{- $wrong = append $wrong "keda.prometheus.serverAddress is empty: KEDA needs the address of Prometheus for the metrics of the bridge" -}}
{{- end -}}
{{- if and $byBridge (eq (int $keda.minReplicas) 0) -}}
{{- $wrong = append $wrong "keda.minReplicas is 0, but the triggers are metrics of the bridge, which do not exist without a pod: set it to at least 1" -}}
{{- end -}}
{{- $behavior := (default dict $keda.fallback).behavior -}}
{{- if and .Values.persistence.enabled (has $behavior (list "static" "currentReplicasIfLower")) -}}
{{- $wrong = append $wrong (printf "keda.fallback.behavior is %s, which can remove pods whose spools have events: set it to currentReplicasIfHigher or currentReplicas" $behavior) -}}
{{- end -}}
{{- /* The trigger uses a metric that only this kind has. */ -}}
{{- if and $keda.prometheus.messagesPerReplica (not (has "mns" $facts.inputKinds)) -}}
{{- $wrong = append $wrong "keda.prometheus.messagesPerReplica is set, but config has no input of kind mns" -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.monitoring" -}}
{{- $wrong := list -}}
{{- $settings := .Values.prometheusRule -}}
{{- $text := .Files.Get "files/alerts/apsara-bridge.yaml" -}}
{{- $alerts := list -}}
{{- range (fromYaml $text).groups -}}
{{- range .rules -}}
{{- $alerts = append $alerts .alert | compact -}}
{{- end -}}
{{- end -}}
{{- if $alerts -}}
{{- range $settings.disabled -}}
{{- if not (has . $alerts) -}}
{{- $wrong = append $wrong (printf "prometheusRule.disabled has an unknown alert, %s: expected one of %s" . (join ", " $alerts)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $changes := $settings.alerts -}}
{{- if not (has $name $alerts) -}}
{{- $wrong = append $wrong (printf "prometheusRule.alerts has an unknown alert, %s: expected one of %s" $name (join ", " $alerts)) -}}
{{- end -}}
{{- if $changes -}}
{{- if and (hasKey $changes "for") (not (include "apsara-bridge.isTime" $changes.for)) (ne (toString $changes.for) "0s") -}}
{{- $wrong = append $wrong (printf "prometheusRule.alerts.%s.for is %v: expected a time with a unit, for example 10m" $name $changes.for) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The numbers and times that the rules name. */ -}}
{{- $shares := list "thresholds.spoolFull" "thresholds.deadLettersFull" -}}
{{- $hours := dict "thresholds.noEventsFromHour" (list 0 23) "thresholds.noEventsHours" (list 1 24) -}}
{{- $checked := list -}}
{{- range (include "apsara-bridge.markers" $text | fromJsonArray) -}}
{{- if not (has .key $checked) -}}
{{- $checked = append $checked .key -}}
{{- $value := get (get $settings (splitList "." .key | first)) (splitList "." .key | last) -}}
{{- /* `--set` makes a text of 0.95. */ -}}
{{- $isNumber := regexMatch "^[0-9]+([.][0-9]+)?$" (toString $value) -}}
{{- if has (kindOf $value) (list "int" "int64" "float64") -}}
{{- $isNumber = true -}}
{{- end -}}
{{- $expected := "" -}}
{{- if and (eq .key "thresholds.noEvents") (empty $value) (not $isNumber) -}}
{{- /* The alert is off. */ -}}
{{- else if ne .kind "number" -}}
{{- if eq (include "apsara-bridge.seconds" $value) "0" -}}
{{- $expected = "a number with one of the units s, m, h, d, w, for example 15m" -}}
{{- end -}}
{{- else if hasKey $hours .key -}}
{{- $bounds := get $hours .key -}}
{{- $isWhole := and $isNumber (eq (floor $value) (float64 $value)) -}}
{{- if not (and $isWhole (ge (float64 $value) (float64 (first $bounds))) (le (float64 $value) (float64 (last $bounds)))) -}}
{{- $expected = printf "a whole number from %v to %v" (first $bounds) (last $bounds) -}}
{{- end -}}
{{- else if has .key $shares -}}
{{- if not (and $isNumber (gt (float64 $value) 0.0) (le (float64 $value) 1.0)) -}}
{{- $expected = "a number above 0 and at most 1" -}}
{{- end -}}
{{- else if has .key (list "slo.answered" "slo.onBus") -}}
{{- if not (and $isNumber (ge (float64 $value) 0.95) (lt (float64 $value) 1.0)) -}}
{{- $expected = "a number of at least 0.95, below which the fast alert could not fire, and below 1" -}}
{{- end -}}
{{- else if not (and $isNumber (ge (float64 $value) 0.0)) -}}
{{- $expected = "a number of at least 0" -}}
{{- end -}}
{{- if $expected -}}
{{- $is := kindIs "string" $value | ternary (toString $value | quote) (toString $value) -}}
{{- $wrong = append $wrong (printf "prometheusRule.%s is %s: expected %s" .key $is $expected) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $name := (list "serviceMonitor" "podMonitor") -}}
{{- $monitor := get $.Values $name -}}
{{- range (list "interval" "scrapeTimeout") -}}
{{- $value := get $monitor . -}}
{{- $isLeftOut := and (eq . "scrapeTimeout") (empty $value) -}}
{{- if not (or $isLeftOut (include "apsara-bridge.isTime" $value)) -}}
{{- $wrong = append $wrong (printf "%s.%s is %s: expected a time with a unit, for example 30s" $name . (toString $value | quote)) -}}
{{- end -}}
{{- end -}}
{{- $times := list (include "apsara-bridge.milliseconds" $monitor.interval) (include "apsara-bridge.milliseconds" $monitor.scrapeTimeout) -}}
{{- if and $monitor.scrapeTimeout (not (has "invalid" $times)) (gt (last $times | int64) (first $times | int64)) -}}
{{- $wrong = append $wrong (printf "%s.scrapeTimeout is %v: expected at most %s.interval, which is %v" $name $monitor.scrapeTimeout $name $monitor.interval) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- $wrong = append $wrong "serviceMonitor.enabled and podMonitor.enabled are both true, and Prometheus would count everything twice: disable one of them" -}}
{{- end -}}
{{- if not (include "apsara-bridge.isTime" .Values.keda.prometheus.range) -}}
{{- $wrong = append $wrong (printf "keda.prometheus.range is %s: expected a time with a unit, for example 5m" (toString .Values.keda.prometheus.range | quote)) -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}
