{{/*
What the values may not say. Every mistake is told at once, one a line, with its key and what to do.
*/}}

{{- define "apsara-bridge.validate" -}}
{{- $wrong := list -}}
{{- range (list "config" "secrets" "workload" "ways" "scaling" "monitoring") -}}
{{- $wrong = concat $wrong (include (printf "apsara-bridge.wrong.%s" .) $ | fromJsonArray) -}}
{{- end -}}
{{- with $wrong -}}
{{- printf "\n\n%s cannot be installed so:\n  - %s\n" (include "apsara-bridge.fullname" $) (join "\n  - " .) | fail -}}
{{- end -}}
{{- end -}}

{{- define "apsara-bridge.wrong.config" -}}
{{- $wrong := list -}}
{{- $config := include "apsara-bridge.config" . | fromJson -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $kinds := .Files.Get "files/kinds.yaml" | fromYaml -}}
{{- if empty $config -}}
{{- $wrong = append $wrong "config is empty: the bridge needs an input, an output and a route; the chart's README begins with an example" -}}
{{- else -}}
{{- if empty $config.inputs -}}
{{- $wrong = append $wrong (printf "config.inputs is empty: name at least one input, of kind %s" (keys $kinds.inputs | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if empty $config.outputs -}}
{{- $wrong = append $wrong (printf "config.outputs is empty: name at least one output, of kind %s" (keys $kinds.outputs | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if empty $config.routes -}}
{{- $wrong = append $wrong "config.routes is empty: without a route no event goes anywhere; one with a name and `to` takes everything" -}}
{{- end -}}
{{- if gt (len $facts.listeners) 1 -}}
{{- $wrong = append $wrong (printf "config.inputs has several inputs that listen (%s), and the Service leads to one: give one of them several endpoints" (join ", " $facts.listeners)) -}}
{{- end -}}

{{- if and $facts.listener (not $facts.listener.endpoints) -}}
{{- $wrong = append $wrong (printf "config.inputs.%s.endpoints is empty: name at least one, with its path, urls and keys" $facts.listener.name) -}}
{{- end -}}

{{- /* What chart.yaml sets, and objects outside of the configuration rely on. */ -}}
{{- $listen := include "apsara-bridge.listen" (list . "admin") -}}
{{- with ($config.admin).listen -}}
{{- if ne . $listen -}}
{{- $wrong = append $wrong (printf "config.admin.listen is %s, but the chart sets it to %s, where probes and the Service look: leave it out, and set listen.admin" . $listen) -}}
{{- end -}}
{{- end -}}
{{- with $facts.listener -}}
{{- $listen := include "apsara-bridge.listen" (list $ "callbacks") -}}
{{- $texts := include "apsara-bridge.texts" (list "" (get $config.inputs .name)) | fromJsonArray -}}
{{- range (include "apsara-bridge.fitting" (list $texts .key) | fromJsonArray) -}}
{{- if ne (toString .value) $listen -}}
{{- $wrong = append $wrong (printf "config.inputs.%s.%s is %v, but the chart sets it to %s, where the Service leads: leave it out, and set listen.callbacks" $facts.listener.name .key .value $listen) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with ($config.spool).path -}}
{{- if ne . (include "apsara-bridge.spoolPath" $) -}}
{{- $wrong = append $wrong (printf "config.spool.path is %s, but the volume is mounted at %s: leave it out" . (include "apsara-bridge.spoolPath" $)) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (default dict $config.spool) "enabled" -}}
{{- if and $config.spool.enabled (not .Values.persistence.enabled) -}}
{{- $wrong = append $wrong "config.spool.enabled is true, but persistence.enabled is false: there is no volume for the spool to outlive the pod" -}}
{{- else if and (not $config.spool.enabled) .Values.persistence.enabled -}}
{{- $wrong = append $wrong "config.spool.enabled is false, but persistence.enabled is true: for a bridge without a spool set persistence.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- range $key := (list "delay" "drain") -}}
{{- $time := get (default dict $config.shutdown) $key -}}
{{- if and $time (eq (include "apsara-bridge.milliseconds" $time) "invalid") -}}
{{- $wrong = append $wrong (printf "config.shutdown.%s is `%v`, which is no time: write it with its unit, as in 20s or 1m 30s" $key $time) -}}
{{- end -}}
{{- end -}}

{{- /* Secrets as text would lie in a ConfigMap for everyone to read. */ -}}
{{- range $plugin := (include "apsara-bridge.plugins" . | fromJsonArray) -}}
{{- $texts := include "apsara-bridge.texts" (list "" .settings) | fromJsonArray -}}
{{- $keys := list -}}
{{- range .secrets -}}
{{- range (include "apsara-bridge.fitting" (list $texts .) | fromJsonArray) -}}
{{- $keys = append $keys .key -}}
{{- end -}}
{{- end -}}
{{- range uniq $keys -}}
{{- $wrong = append $wrong (printf "config.%s.%s.%s holds a secret as text, and the configuration becomes a ConfigMap: put it into a Secret, name that in `secrets`, and write {file: %s/NAME/KEY} here" $plugin.section $plugin.name . (include "apsara-bridge.secretsPath" $)) -}}
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
{{- $wrong = append $wrong (printf "secrets.%s names no Secret: set secrets.%s.existingSecret" $name $name) -}}
{{- end -}}
{{- if not $secret.keys -}}
{{- $wrong = append $wrong (printf "secrets.%s names a Secret without keys: list in secrets.%s.keys those that become files" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.quickStart.callbackKey (default dict .Values.secrets).callback -}}
{{- $wrong = append $wrong "quickStart.callbackKey and secrets.callback are both set, and both mount the folder callback: leave quickStart.callbackKey out" -}}
{{- end -}}

{{- /* A file that the configuration names must come from somewhere. */ -}}
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
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .)) $file -}}
{{- $isMounted = true -}}
{{- end -}}
{{- end -}}
{{- $parts := trimPrefix (printf "%s/" $path) $file | splitList "/" -}}
{{- $name := first $parts -}}
{{- $key := rest $parts | join "/" -}}
{{- if not $isMounted -}}
{{- if not (hasKey $secrets $name) -}}
{{- $wrong = append $wrong (printf "config names the file %s, but there is no secrets.%s to mount it" $file $name) -}}
{{- else if and (get $secrets $name).keys (not (has $key (get $secrets $name).keys)) -}}
{{- $wrong = append $wrong (printf "config names the file %s, but secrets.%s.keys does not list `%s`" $file $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.workload" -}}
{{- $wrong := list -}}
{{- $name := include "apsara-bridge.fullname" . -}}
{{- $namespace := include "apsara-bridge.namespace" . -}}
{{- $needed := include "apsara-bridge.stopSeconds" . | int64 -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int64 .) $needed -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %v, but stopping may take %d s (shutdown.delay, shutdown.drain and 12 s more): leave it out, or shorten config.shutdown" . $needed) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if regexMatch "^APSARA_BRIDGE__(ADMIN__LISTEN|SPOOL__ENABLED|SPOOL__PATH|SHUTDOWN__DELAY|SHUTDOWN__DRAIN)$" .name -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s, which the chart has to know: set it in `config`, `listen` or `persistence`" .name) -}}
{{- end -}}
{{- end -}}

{{- /* Kinds are not turned into one another: empty without a cluster, as under helm template. */ -}}
{{- $other := .Values.persistence.enabled | ternary "Deployment" "StatefulSet" -}}
{{- $found := lookup "apps/v1" $other $namespace $name -}}
{{- if eq (dig "metadata" "annotations" "meta.helm.sh/release-name" "" (default dict $found)) .Release.Name -}}
{{- if .Values.persistence.enabled -}}
{{- $wrong = append $wrong (printf "persistence.enabled is true, but the release runs as a Deployment, without volumes, and is not turned into a StatefulSet by an upgrade: `helm uninstall` it and install it anew") -}}
{{- else -}}
{{- $wrong = append $wrong (printf "persistence.enabled is false, but the release runs as a StatefulSet, and what lies in the spools on its volumes would be left there: wait until apsara_bridge_spool_events is 0 on every pod, replay or delete the dead letters, then `helm uninstall` it and install it anew; its volumes stay until you delete them") -}}
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
{{- $wrong = append $wrong (printf "persistence.size is %v, but the volumes were made with %v, and a StatefulSet's template cannot be changed: the chart's README tells how volumes are enlarged" $.Values.persistence.size $is) -}}
{{- end -}}
{{- /* What else stands there, and the server would refuse with fewer words, leaving a failed revision. */ -}}
{{- $class := hasKey .spec "storageClassName" | ternary (default "-" .spec.storageClassName) "" -}}
{{- if ne $class (default "" $.Values.persistence.storageClassName) -}}
{{- $wrong = append $wrong (printf "persistence.storageClassName is %q, but the volumes were made with %q, and a StatefulSet's template cannot be changed: leave it as it was" $.Values.persistence.storageClassName $class) -}}
{{- end -}}
{{- if ne (toJson (default (list "ReadWriteOnce") .spec.accessModes)) (toJson $.Values.persistence.accessModes) -}}
{{- $wrong = append $wrong (printf "persistence.accessModes is %s, but the volumes were made with %s, and a StatefulSet's template cannot be changed: leave it as it was" (toJson $.Values.persistence.accessModes) (toJson .spec.accessModes)) -}}
{{- end -}}
{{- if ne (toJson (default dict .metadata.annotations)) (toJson (default dict $.Values.persistence.annotations)) -}}
{{- $wrong = append $wrong (printf "persistence.annotations is %s, but the volumes were made with %s, and a StatefulSet's template cannot be changed: leave it as it was, and annotate the claims with kubectl" (toJson $.Values.persistence.annotations) (toJson (default dict .metadata.annotations))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.ways" -}}
{{- $wrong := list -}}
{{- $facts := include "apsara-bridge.facts" . | fromJson -}}
{{- $admin := include "apsara-bridge.adminName" . -}}
{{- $kinds := list -}}
{{- range $kind, $known := (.Files.Get "files/kinds.yaml" | fromYaml).inputs -}}
{{- if $known.listeners -}}
{{- $kinds = append $kinds $kind -}}
{{- end -}}
{{- end -}}
{{- $noListener := printf "but config has no input that listens: add one of kind %s" (join " or " $kinds) -}}
{{- if .Values.ingress.enabled -}}
{{- if not $facts.listener -}}
{{- $wrong = append $wrong (printf "ingress.enabled is true, %s" $noListener) -}}
{{- end -}}
{{- if not (compact (default list .Values.ingress.hosts)) -}}
{{- $wrong = append $wrong "ingress.hosts is empty: name the host of the URL that is typed at Alibaba" -}}
{{- end -}}
{{- end -}}
{{- range $name, $route := (default dict .Values.httpRoutes) -}}
{{- if and $route $route.enabled -}}
{{- if not $facts.listener -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.enabled is true, %s" $name $noListener) -}}
{{- end -}}
{{- if not $route.parentRefs -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.parentRefs is empty: name the Gateway that the route belongs to" $name) -}}
{{- end -}}
{{- if contains (printf "\"%s\"" $admin) (toJson (default list $route.additionalRules)) -}}
{{- $wrong = append $wrong (printf "httpRoutes.%s.additionalRules leads to the Service %s: the admin port stays inside of the cluster" $name $admin) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- if and $facts.listener (not $policy.gatewayNamespaces) (not $policy.gatewayPeers) -}}
{{- $wrong = append $wrong "networkPolicy lets nobody post callbacks: name the namespace of the gateway in networkPolicy.gatewayNamespaces, or addresses in networkPolicy.gatewayPeers" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not $policy.monitoringNamespaces) (not $policy.monitoringPeers) -}}
{{- $wrong = append $wrong "serviceMonitor.enabled is true, but networkPolicy lets nobody read metrics: name the namespace of Prometheus in networkPolicy.monitoringNamespaces" -}}
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
{{- $wrong = append $wrong "podDisruptionBudget has both minAvailable and maxUnavailable: set one of them, and the other to null" -}}
{{- else if not (or $hasMin $hasMax) -}}
{{- $wrong = append $wrong "podDisruptionBudget has neither minAvailable nor maxUnavailable: set one of them, as maxUnavailable to 1" -}}
{{- end -}}
{{- end -}}
{{- $hpa := .Values.autoscaling -}}
{{- $keda := .Values.keda -}}
{{- if and $hpa.enabled $keda.enabled -}}
{{- $wrong = append $wrong "autoscaling.enabled and keda.enabled are both true, and would fight over the replicas: KEDA makes a HorizontalPodAutoscaler of its own, so leave autoscaling out" -}}
{{- end -}}
{{- if $hpa.enabled -}}
{{- if lt (int $hpa.maxReplicas) (int $hpa.minReplicas) -}}
{{- $wrong = append $wrong (printf "autoscaling.maxReplicas is %v, less than autoscaling.minReplicas, which is %v" $hpa.maxReplicas $hpa.minReplicas) -}}
{{- end -}}
{{- if not (or $hpa.targetCPUUtilizationPercentage $hpa.targetMemoryUtilizationPercentage $hpa.metrics) -}}
{{- $wrong = append $wrong "autoscaling has nothing to scale by: set autoscaling.targetCPUUtilizationPercentage or autoscaling.metrics" -}}
{{- end -}}
{{- end -}}
{{- if $keda.enabled -}}
{{- if lt (int $keda.maxReplicas) (int $keda.minReplicas) -}}
{{- $wrong = append $wrong (printf "keda.maxReplicas is %v, less than keda.minReplicas, which is %v" $keda.maxReplicas $keda.minReplicas) -}}
{{- end -}}
{{- if and $facts.listener (eq (int $keda.minReplicas) 0) -}}
{{- $wrong = append $wrong "keda.minReplicas is 0, but callbacks come by HTTP, and would find nobody: set it to 1 at least" -}}
{{- end -}}
{{- $byBridge := or $keda.prometheus.callbacksPerReplica $keda.prometheus.messagesPerReplica -}}
{{- if not (or $byBridge $keda.triggers) -}}
{{- $wrong = append $wrong "keda has no trigger: set keda.prometheus.callbacksPerReplica, keda.prometheus.messagesPerReplica or keda.triggers" -}}
{{- end -}}
{{- if and $byBridge (not $keda.prometheus.serverAddress) -}}
{{- $wrong = append $wrong "keda.prometheus.serverAddress is empty: KEDA asks Prometheus there for the bridge's metrics" -}}
{{- end -}}
{{- if and $byBridge (eq (int $keda.minReplicas) 0) -}}
{{- $wrong = append $wrong "keda.minReplicas is 0, but the triggers are metrics of the bridge, and with no replica there are none: set it to 1 at least" -}}
{{- end -}}
{{- /* That trigger asks for a metric of this kind. */ -}}
{{- if and $keda.prometheus.messagesPerReplica (not (has "mns" $facts.inputKinds)) -}}
{{- $wrong = append $wrong "keda.prometheus.messagesPerReplica is set, but config has no input of kind mns" -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "apsara-bridge.wrong.monitoring" -}}
{{- $wrong := list -}}
{{- $alerts := list -}}
{{- range (.Files.Get "files/alerts/apsara-bridge.yaml" | fromYaml).groups -}}
{{- range .rules -}}
{{- $alerts = append $alerts .alert -}}
{{- end -}}
{{- end -}}
{{- if and $alerts .Values.prometheusRule.enabled -}}
{{- range .Values.prometheusRule.disabled -}}
{{- if not (has . $alerts) -}}
{{- $wrong = append $wrong (printf "prometheusRule.disabled names %s, but there is no such alert; there are %s" . (join ", " $alerts)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}
