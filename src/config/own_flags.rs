//! The flags that A1111 does not have.

/// A flag that only this server has.
pub(super) struct OwnFlag {
    pub name: &'static str,
    /// How `--help` names its value; `None`: a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
}

/// They are not part of the echo, which clients parse strictly.
pub(super) const OWN_FLAGS: &[OwnFlag] = &[
    OwnFlag {
        name: "flags-file",
        value: Some("FILE"),
        help: "A TOML file with flags, for example port = 7860; the command line and ANCESTRAL_PORT and the like win over it",
    },
    OwnFlag {
        name: "execution-provider",
        value: Some("NAME[,NAME...]"),
        help: "Execution providers to try in order: tensorrt, cuda, directml, cpu [default: cuda, directml, cpu]",
    },
    OwnFlag {
        name: "gpu-mem-limit",
        value: Some("GIB"),
        help: "Memory of a CUDA device that graphs may take [default: what there is]",
    },
    OwnFlag {
        name: "conv-search",
        value: Some("exhaustive|heuristic|fixed"),
        help: "How cuDNN chooses its convolutions; exhaustive tries all at each new size; no faster where measured, and slower at 640x896 [default: heuristic]",
    },
    OwnFlag {
        name: "ort-library",
        value: Some("FILE"),
        help: "The ONNX Runtime library [default: ORT_DYLIB_PATH, beside the executable, DATA/runtime, an installed Python package]",
    },
    OwnFlag {
        name: "threads",
        value: Some("N"),
        help: "Threads of one graph [default: the number of physical cores]",
    },
    OwnFlag {
        name: "no-matrix-unit",
        value: None,
        help: "Layers are computed by the library alone, also where the processor has a matrix unit (AMX)",
    },
    OwnFlag {
        name: "model-memory",
        value: Some("GIB"),
        help: "Memory that loaded checkpoints may take together; what fits stays loaded [default: half of the machine's, and large text encoders make room for steps on a CPU]",
    },
    OwnFlag {
        name: "decode-memory",
        value: Some("GIB"),
        help: "Memory that a picture's decoding may take: in one piece where that fits, else strip by strip, and what fits of that is computed once; 0: the least [default: what is free; in strips with a large UNet on a CPU]",
    },
    OwnFlag {
        name: "load-strategy",
        value: Some("auto|quick|fast"),
        help: "Large UNets on a CPU: quick loads in a sixth of the time, fast takes 7 % less a step; auto: quick, until what was asked for makes fast pay [default: auto]",
    },
    OwnFlag {
        name: "dynamic-prompts",
        value: Some("auto|on|off"),
        help: "Wildcards and dynamic prompts; auto: on where DATA/wildcards or the extension's folder of wildcards is there [default: auto]",
    },
    OwnFlag {
        name: "wildcards-dir",
        value: Some("FOLDER"),
        help: "A folder of wildcards besides DATA/wildcards and DATA/extensions/sd-dynamic-prompts/wildcards",
    },
    OwnFlag {
        name: "queue-size",
        value: Some("N"),
        help: "Requests that may wait for their turn [default: 256]",
    },
    OwnFlag {
        name: "queue-size-per-client",
        value: Some("N"),
        help: "Requests of one client that may wait [default: as many as may wait in all]",
    },
    OwnFlag {
        name: "max-concurrent-jobs",
        value: Some("N"),
        help: "Jobs that run at once [default: 1 on a CPU, 4 on a GPU]",
    },
    OwnFlag {
        name: "shared-run-megapixels",
        value: Some("N"),
        help: "Picture area in millions of pixels, both prompts counted, up to which jobs share runs of the UNet; 0: never [default: 2.1 on a CPU, 4.2 on a GPU]",
    },
    OwnFlag {
        name: "cancel-on-disconnect",
        value: None,
        help: "A client that leaves interrupts its running job; A1111 finishes such jobs",
    },
    OwnFlag {
        name: "keep-results",
        value: Some("SECONDS"),
        help: "How long the results of /v1/jobs are kept [default: 3600]",
    },
    OwnFlag {
        name: "drain-timeout",
        value: Some("SECONDS"),
        help: "How long running jobs may go on when the server stops; then they are interrupted [default: to their end]",
    },
    OwnFlag {
        name: "webhook-origins",
        value: Some("ORIGIN[,ORIGIN...]"),
        help: "Origins such as https://example.org that /v1/jobs may tell of the end of a job; the key of the signature is the environment's ANCESTRAL_WEBHOOK_SECRET [default: none]",
    },
    OwnFlag {
        name: "max-body-size",
        value: Some("MIB"),
        help: "Largest body of a request [default: 256]",
    },
    OwnFlag {
        name: "max-megapixels",
        value: Some("N"),
        help: "Largest picture that is drawn, in millions of pixels [default: 64]",
    },
    OwnFlag {
        name: "max-input-megapixels",
        value: Some("N"),
        help: "Largest picture that is read, in millions of pixels [default: 178]",
    },
    OwnFlag {
        name: "max-steps",
        value: Some("N"),
        help: "Most sampling steps of a request [default: 1000]",
    },
    OwnFlag {
        name: "max-pictures",
        value: Some("N"),
        help: "Most pictures of a request: batch size times number of batches [default: 1000]",
    },
    OwnFlag {
        name: "max-prompt-length",
        value: Some("N"),
        help: "Most characters of a prompt [default: 100000]",
    },
    OwnFlag {
        name: "max-connections",
        value: Some("N"),
        help: "Open connections; more wait [default: 1024]",
    },
    OwnFlag {
        name: "head-timeout",
        value: Some("SECONDS"),
        help: "How long a client may take to send the head of a request [default: 30]",
    },
    OwnFlag {
        name: "body-timeout",
        value: Some("SECONDS"),
        help: "How long a client may pause while it sends a body [default: 60]",
    },
    OwnFlag {
        name: "api-keys",
        value: Some("FILE"),
        help: "A name, a key and perhaps the number of its requests that may wait a line; keys come as X-API-Key or bearer token",
    },
    OwnFlag {
        name: "allow-hosts",
        value: Some("NAME[,NAME...]"),
        help: "Names that a server on the loopback interface answers to beside the local ones, for reverse proxies; * is any",
    },
    OwnFlag {
        name: "allow-image-urls",
        value: None,
        help: "Pictures of requests may be addresses of public hosts",
    },
    OwnFlag {
        name: "safety-checker",
        value: None,
        help: "Black out finished pictures that MODELS/safety_checker/model.onnx flags",
    },
    OwnFlag {
        name: "cors-allow-local",
        value: None,
        help: "Pages from localhost and from files on this machine may call this server",
    },
    OwnFlag {
        name: "log-json",
        value: None,
        help: "Write log lines as JSON objects",
    },
];
