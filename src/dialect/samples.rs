//! Sample callbacks, for the demo and for the examples in schemas and docs.

macro_rules! samples {
    ($($name:literal,)*) => {
        /// Sample callbacks by name. They are from Alibaba's pages, except those whose name ends in `-built`.
        pub const SAMPLES: &[(&str, &[u8])] = &[$((
            $name,
            include_bytes!(concat!("samples/", $name, ".json")),
        ),)*];
    };
}

samples! {
    "ims-AIMediaAuditComplete",
    "ims-AIProduceComplete",
    "ims-ApsaraVideoForMediaProcessingOutputGroupComplete",
    "ims-AttachedMediaUploadComplete",
    "ims-BatchProduceMediaComplete",
    "ims-CreateAuditComplete",
    "ims-DeleteMediaComplete",
    "ims-DynamicImageComplete",
    "ims-FileUploadComplete",
    "ims-ImageUploadComplete",
    "ims-LiveRecordFileCreated",
    "ims-LiveRecordTaskStatus",
    "ims-LiveSnapshotFileCreated",
    "ims-MediaAiAnalysisComplete",
    "ims-MediaBaseChangeComplete",
    "ims-MediaConvertComplete",
    "ims-MediaConvertOutputComplete",
    "ims-MediaConvertOutputGroupComplete-by-heading",
    "ims-ProduceMediaComplete",
    "ims-RegisterMediaComplete",
    "ims-RegisterStreamComplete",
    "ims-SmartJobComplete",
    "ims-SnapshotComplete",
    "ims-StreamUploadComplete",
    "ims-TranscodeComplete",
    "ims-TranscodeParentComplete",
    "ims-UploadByURLComplete",
    "ims-UploadStreamByURLComplete",
    "ims-VideoAnalysisComplete",
    "ims-WorkflowTaskComplete",
    "vod-AIMediaAuditComplete-docs2021",
    "vod-AIMediaDNAComplete-docs2021",
    "vod-AIVideoCensorComplete-built",
    "vod-AIVideoTagComplete-docs2021",
    "vod-AddLiveRecordVideoComplete-docs2021",
    "vod-AttachedMediaUploadComplete-docs2021",
    "vod-CreateAuditComplete-docs2021",
    "vod-DeleteMediaComplete-fail-docs2021",
    "vod-DeleteMediaComplete-success-docs2021",
    "vod-DynamicImageComplete-docs2021",
    "vod-FileUploadComplete-docs2021",
    "vod-FileUploadComplete-docs2026",
    "vod-ImageUploadComplete-docs2021",
    "vod-LiveRecordVideoComposeStart-docs2021",
    "vod-MediaBaseChangeComplete",
    "vod-MediaBaseChangeComplete-content-as-string",
    "vod-MediaDNADeleteComplete-built",
    "vod-ProduceMediaComplete-fail",
    "vod-ProduceMediaComplete-success",
    "vod-RestoreMediaComplete-fail-docs2024",
    "vod-RestoreMediaComplete-success-docs2024",
    "vod-SnapshotComplete-docs2021",
    "vod-StreamTranscodeComplete-docs2021",
    "vod-SubmitMediaRefreshComplete-fail",
    "vod-SubmitMediaRefreshComplete-success",
    "vod-TranscodeComplete",
    "vod-UpdateMediaStorageClassComplete-fail-built",
    "vod-UpdateMediaStorageClassComplete-success-docs2024",
    "vod-UploadByURLComplete-fail-trimmed-keys",
    "vod-UploadByURLComplete-stream-success-docs2024",
    "vod-UploadByURLComplete-success-trimmed-keys",
    "vod-VideoAnalysisComplete-fail-docs2021",
    "vod-VideoAnalysisComplete-success-docs2021",
    "vod-WorkflowTaskComplete-built",
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::dialect::{Catalogue, Normalizer, Origin};
    use crate::event::DEFAULT_TYPE_PREFIX;

    /// Two samples with the same content are one event, which is published once.
    #[test]
    fn the_list_names_every_sample_of_different_content() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dialect/samples");
        let mut files: Vec<std::path::PathBuf> = std::fs::read_dir(folder)
            .expect("the folder of samples")
            .map(|file| file.expect("a file").path())
            .collect();
        files.sort_by_key(|file| file.file_stem().map(std::ffi::OsStr::to_owned));
        let normalizer = Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX);
        let mut ids = std::collections::HashSet::new();
        files.retain(|file| {
            let body = std::fs::read(file).expect("readable");
            let normalized = normalizer.normalize(&body, &Origin::at(OffsetDateTime::UNIX_EPOCH)).expect("a callback");
            ids.insert(normalized.event.id().to_owned())
        });
        let names = files.iter().map(|file| file.file_stem().expect("a name").to_string_lossy().into_owned());
        assert_eq!(SAMPLES.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(), names.collect::<Vec<_>>());
    }
}
