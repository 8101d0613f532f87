//! `GET /openapi.json`: what the server accepts and answers, with A1111's paths, operation ids and
//! schema names, since clients are generated from them.

use serde_json::{Map, Value, json};

use super::field::{Kind, Range};
use super::schema::{
    EXTRAS_BATCH, EXTRAS_SINGLE, IMG2IMG, INTERNAL_PROGRESS, INTERROGATE, PNG_INFO, Schema, TXT2IMG,
};
use crate::config::{OptionKind, option_table};

/// One operation: method, path, A1111's function name, request schema, response schema.
struct Operation {
    method: &'static str,
    path: &'static str,
    function: &'static str,
    request: Request,
    response: Response,
}

enum Request {
    None,
    Schema(&'static str),
    /// Any object, under this title.
    Object(&'static str),
    /// A query parameter of type bool.
    Query(&'static str),
}

enum Response {
    Any,
    /// No JSON but plain text.
    Text,
    Schema(&'static str),
    ListOf(&'static str),
}

const fn get(path: &'static str, function: &'static str, response: Response) -> Operation {
    Operation {
        method: "get",
        path,
        function,
        request: Request::None,
        response,
    }
}

const fn post(
    path: &'static str,
    function: &'static str,
    request: Request,
    response: Response,
) -> Operation {
    Operation {
        method: "post",
        path,
        function,
        request,
        response,
    }
}

/// Every documented operation. The first part is there with the web page only.
const INTERNAL: &[Operation] = &[
    get("/user", "get_current_user", Response::Any),
    get("/login_check", "login_check", Response::Any),
    get("/token", "get_token", Response::Any),
    get("/app_id", "app_id", Response::Any),
    get("/queue/status", "get_queue_status", Response::Any),
    get(
        "/internal/pending-tasks",
        "get_pending_tasks",
        Response::Any,
    ),
    post(
        "/internal/progress",
        "progressapi",
        Request::Schema("ProgressRequest"),
        Response::Schema("modules__progress__ProgressResponse"),
    ),
    get(
        "/internal/quicksettings-hint",
        "quicksettings_hint",
        Response::ListOf("QuicksettingsHint"),
    ),
    get("/internal/ping", "_lambda_", Response::Any),
    get("/internal/profile-startup", "_lambda_", Response::Any),
    get("/internal/sysinfo", "download_sysinfo", Response::Text),
    get("/internal/sysinfo-download", "_lambda_", Response::Text),
];

const API: &[Operation] = &[
    post(
        "/sdapi/v1/txt2img",
        "text2imgapi",
        Request::Schema("StableDiffusionProcessingTxt2Img"),
        Response::Schema("TextToImageResponse"),
    ),
    post(
        "/sdapi/v1/img2img",
        "img2imgapi",
        Request::Schema("StableDiffusionProcessingImg2Img"),
        Response::Schema("ImageToImageResponse"),
    ),
    post(
        "/sdapi/v1/extra-single-image",
        "extras_single_image_api",
        Request::Schema("ExtrasSingleImageRequest"),
        Response::Schema("ExtrasSingleImageResponse"),
    ),
    post(
        "/sdapi/v1/extra-batch-images",
        "extras_batch_images_api",
        Request::Schema("ExtrasBatchImagesRequest"),
        Response::Schema("ExtrasBatchImagesResponse"),
    ),
    post(
        "/sdapi/v1/png-info",
        "pnginfoapi",
        Request::Schema("PNGInfoRequest"),
        Response::Schema("PNGInfoResponse"),
    ),
    Operation {
        method: "get",
        path: "/sdapi/v1/progress",
        function: "progressapi",
        request: Request::Query("skip_current_image"),
        response: Response::Schema("modules__api__models__ProgressResponse"),
    },
    post(
        "/sdapi/v1/interrogate",
        "interrogateapi",
        Request::Schema("InterrogateRequest"),
        Response::Any,
    ),
    post(
        "/sdapi/v1/interrupt",
        "interruptapi",
        Request::None,
        Response::Any,
    ),
    post("/sdapi/v1/skip", "skip", Request::None, Response::Any),
    get(
        "/sdapi/v1/options",
        "get_config",
        Response::Schema("Options"),
    ),
    post(
        "/sdapi/v1/options",
        "set_config",
        Request::Object("Req"),
        Response::Any,
    ),
    get(
        "/sdapi/v1/cmd-flags",
        "get_cmd_flags",
        Response::Schema("Flags"),
    ),
    get(
        "/sdapi/v1/samplers",
        "get_samplers",
        Response::ListOf("SamplerItem"),
    ),
    get(
        "/sdapi/v1/schedulers",
        "get_schedulers",
        Response::ListOf("SchedulerItem"),
    ),
    get(
        "/sdapi/v1/upscalers",
        "get_upscalers",
        Response::ListOf("UpscalerItem"),
    ),
    get(
        "/sdapi/v1/latent-upscale-modes",
        "get_latent_upscale_modes",
        Response::ListOf("LatentUpscalerModeItem"),
    ),
    get(
        "/sdapi/v1/sd-models",
        "get_sd_models",
        Response::ListOf("SDModelItem"),
    ),
    get(
        "/sdapi/v1/sd-vae",
        "get_sd_vaes",
        Response::ListOf("SDVaeItem"),
    ),
    get(
        "/sdapi/v1/hypernetworks",
        "get_hypernetworks",
        Response::ListOf("HypernetworkItem"),
    ),
    get(
        "/sdapi/v1/face-restorers",
        "get_face_restorers",
        Response::ListOf("FaceRestorerItem"),
    ),
    get(
        "/sdapi/v1/realesrgan-models",
        "get_realesrgan_models",
        Response::ListOf("RealesrganItem"),
    ),
    get(
        "/sdapi/v1/prompt-styles",
        "get_prompt_styles",
        Response::ListOf("PromptStyleItem"),
    ),
    get(
        "/sdapi/v1/embeddings",
        "get_embeddings",
        Response::Schema("EmbeddingsResponse"),
    ),
    post(
        "/sdapi/v1/refresh-embeddings",
        "refresh_embeddings",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/refresh-checkpoints",
        "refresh_checkpoints",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/refresh-vae",
        "refresh_vae",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/create/embedding",
        "create_embedding",
        Request::Object("Args"),
        Response::Schema("CreateResponse"),
    ),
    post(
        "/sdapi/v1/create/hypernetwork",
        "create_hypernetwork",
        Request::Object("Args"),
        Response::Schema("CreateResponse"),
    ),
    post(
        "/sdapi/v1/train/embedding",
        "train_embedding",
        Request::Object("Args"),
        Response::Schema("TrainResponse"),
    ),
    post(
        "/sdapi/v1/train/hypernetwork",
        "train_hypernetwork",
        Request::Object("Args"),
        Response::Schema("TrainResponse"),
    ),
    get(
        "/sdapi/v1/memory",
        "get_memory",
        Response::Schema("MemoryResponse"),
    ),
    post(
        "/sdapi/v1/unload-checkpoint",
        "unloadapi",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/reload-checkpoint",
        "reloadapi",
        Request::None,
        Response::Any,
    ),
    get(
        "/sdapi/v1/scripts",
        "get_scripts_list",
        Response::Schema("ScriptsList"),
    ),
    get(
        "/sdapi/v1/script-info",
        "get_script_info",
        Response::ListOf("ScriptInfo"),
    ),
    get(
        "/sdapi/v1/extensions",
        "get_extensions_list",
        Response::ListOf("ExtensionItem"),
    ),
    get("/sdapi/v1/loras", "get_loras", Response::Any),
    post(
        "/sdapi/v1/refresh-loras",
        "refresh_loras",
        Request::None,
        Response::Any,
    ),
];

const SERVER_CONTROL: &[Operation] = &[
    post(
        "/sdapi/v1/server-kill",
        "kill_webui",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/server-restart",
        "restart_webui",
        Request::None,
        Response::Any,
    ),
    post(
        "/sdapi/v1/server-stop",
        "stop_webui",
        Request::None,
        Response::Any,
    ),
];

/// The document; with the routes that the server's flags switch on.
#[must_use]
pub fn openapi_document(web_routes: bool, server_stop: bool) -> Value {
    let mut paths = Map::new();
    let parts = [
        (INTERNAL, web_routes),
        (API, true),
        (SERVER_CONTROL, server_stop),
    ];
    for operation in parts
        .iter()
        .filter(|(_, there)| *there)
        .flat_map(|(part, _)| part.iter())
    {
        let methods = paths.entry(operation.path).or_insert_with(|| json!({}));
        methods[operation.method] = operation.to_json();
    }
    json!({
        "openapi": "3.0.2",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

impl Operation {
    fn to_json(&self) -> Value {
        let mut operation = Map::new();
        operation.insert("summary".to_owned(), json!(title(self.function)));
        let place: String = self
            .path
            .chars()
            .map(|character| {
                if character.is_alphanumeric() {
                    character
                } else {
                    '_'
                }
            })
            .collect();
        let id = format!("{}{place}_{}", self.function, self.method);
        operation.insert("operationId".to_owned(), json!(id));
        let content = |schema: Value| json!({"application/json": {"schema": schema}});
        let mut can_fail = true;
        match self.request {
            Request::None => can_fail = false,
            Request::Schema(name) => {
                let body = json!({"content": content(reference(name)), "required": true});
                operation.insert("requestBody".to_owned(), body);
            }
            Request::Object(title) => {
                let schema = json!({"title": title, "type": "object"});
                let body = json!({"content": content(schema), "required": true});
                operation.insert("requestBody".to_owned(), body);
            }
            Request::Query(name) => {
                let schema = json!({"title": title(name), "type": "boolean", "default": false});
                let parameter =
                    json!({"required": false, "schema": schema, "name": name, "in": "query"});
                operation.insert("parameters".to_owned(), json!([parameter]));
            }
        }
        let answer = match self.response {
            Response::Any => content(json!({})),
            Response::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
            Response::Schema(name) => content(reference(name)),
            Response::ListOf(name) => content(json!({"type": "array", "items": reference(name)})),
        };
        let mut responses = json!({
            "200": {"description": "Successful Response", "content": answer},
        });
        if can_fail {
            self.add_failures(&mut responses);
        }
        operation.insert("responses".to_owned(), responses);
        Value::Object(operation)
    }
}

impl Operation {
    /// What an operation that reads its request may answer besides. A1111's document has the first only.
    fn add_failures(&self, responses: &mut Value) {
        let mut add = |status: &str, description: &str, schema: Value| {
            let content = json!({"application/json": {"schema": schema}});
            responses[status] = json!({"description": description, "content": content});
        };
        let validation = reference("HTTPValidationError");
        let error = reference("ErrorResponse");
        let generates = matches!(self.function, "text2imgapi" | "img2imgapi");
        let refused = if generates {
            json!({"anyOf": [validation, error]}) // a script that does not exist
        } else {
            validation
        };
        add("422", "Validation Error", refused);
        if matches!(self.function, "img2imgapi" | "interrogateapi") {
            add("404", "Not Found", error.clone());
        }
        if matches!(self.request, Request::Schema(_) | Request::Object(_)) {
            add("500", "Error", error);
        }
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// `hr_resize_x` becomes `Hr Resize X`, as pydantic titles fields.
fn title(name: &str) -> String {
    name.split(['_', '-'])
        .filter(|word| !word.is_empty())
        .map(|word| {
            let mut characters = word.chars();
            let first = characters
                .next()
                .map(|first| first.to_uppercase().to_string());
            first.unwrap_or_default() + characters.as_str()
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn schemas() -> Map<String, Value> {
    let mut schemas = Map::new();
    let requests: [(&str, Schema); 7] = [
        ("StableDiffusionProcessingTxt2Img", TXT2IMG),
        ("StableDiffusionProcessingImg2Img", IMG2IMG),
        ("ExtrasSingleImageRequest", EXTRAS_SINGLE),
        ("ExtrasBatchImagesRequest", EXTRAS_BATCH),
        ("PNGInfoRequest", PNG_INFO),
        ("InterrogateRequest", INTERROGATE),
        ("ProgressRequest", INTERNAL_PROGRESS),
    ];
    for (name, fields) in requests {
        schemas.insert(name.to_owned(), request_schema(name, fields));
    }
    for (name, required, optional) in ANSWERS {
        schemas.insert((*name).to_owned(), answer_schema(name, required, optional));
    }
    schemas.insert("Options".to_owned(), options_schema());
    schemas.insert(
        "Flags".to_owned(),
        json!({"title": "Flags", "type": "object"}),
    );
    schemas.insert(
        "ValidationError".to_owned(),
        json!({
            "title": "ValidationError",
            "required": ["loc", "msg", "type"],
            "type": "object",
            "properties": {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        }),
    );
    schemas.insert(
        "HTTPValidationError".to_owned(),
        json!({
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {
                "detail": {"title": "Detail", "type": "array", "items": reference("ValidationError")},
            },
        }),
    );
    schemas
}

fn request_schema(name: &str, fields: Schema) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        let mut property = kind_schema(field.kind);
        property["title"] = json!(title(field.name));
        if field.nullable {
            property["nullable"] = json!(true);
        }
        let default = field.default.to_json();
        if field.default == super::field::Preset::Required {
            required.push(field.name);
        } else if !default.is_null() {
            property["default"] = default;
        }
        properties.insert(field.name.to_owned(), property);
    }
    let mut schema = json!({"title": name, "type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn kind_schema(kind: Kind) -> Value {
    match kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Int { least: None } => json!({"type": "integer"}),
        Kind::Int { least: Some(least) } => json!({"type": "integer", "minimum": least}),
        Kind::Float { range: Range::Any } => json!({"type": "number"}),
        Kind::Float { range: Range::Unit } => {
            json!({"type": "number", "minimum": 0.0, "maximum": 1.0})
        }
        Kind::Float {
            range: Range::Positive,
        } => json!({"type": "number", "minimum": 0.0, "exclusiveMinimum": true}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::List => json!({"type": "array", "items": {}}),
        Kind::TextList => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Object => json!({"type": "object"}),
        Kind::ZeroOrOne => json!({"type": "integer", "enum": [0, 1]}),
        Kind::FileList => json!({"type": "array", "items": reference("FileData")}),
    }
}

/// Name and type of one member: `s`tring, `i`nteger, `n`umber, `b`oolean, `o`bject, `S` list of
/// strings, `L` list of anything, `*` anything.
type Member = (&'static str, char);

/// Name, members that are always there, members that may be null.
static ANSWERS: &[(&str, &[Member], &[Member])] = &[
    (
        "TextToImageResponse",
        &[("parameters", 'o'), ("info", 's')],
        &[("images", 'S')],
    ),
    (
        "ImageToImageResponse",
        &[("parameters", 'o'), ("info", 's')],
        &[("images", 'S')],
    ),
    (
        "ExtrasSingleImageResponse",
        &[("html_info", 's')],
        &[("image", 's')],
    ),
    (
        "ExtrasBatchImagesResponse",
        &[("html_info", 's'), ("images", 'S')],
        &[],
    ),
    ("FileData", &[("data", 's'), ("name", 's')], &[]),
    (
        "PNGInfoResponse",
        &[("info", 's'), ("items", 'o'), ("parameters", 'o')],
        &[],
    ),
    (
        "modules__api__models__ProgressResponse",
        &[("progress", 'n'), ("eta_relative", 'n'), ("state", 'o')],
        &[("current_image", 's'), ("textinfo", 's')],
    ),
    (
        "modules__progress__ProgressResponse",
        &[("active", 'b'), ("queued", 'b'), ("completed", 'b')],
        &[
            ("progress", 'n'),
            ("eta", 'n'),
            ("live_preview", 's'),
            ("id_live_preview", 'i'),
            ("textinfo", 's'),
        ],
    ),
    ("QuicksettingsHint", &[("name", 's'), ("label", 's')], &[]),
    (
        "SamplerItem",
        &[("name", 's'), ("aliases", 'S'), ("options", 'o')],
        &[],
    ),
    (
        "SchedulerItem",
        &[("name", 's'), ("label", 's')],
        &[
            ("aliases", 'S'),
            ("default_rho", 'n'),
            ("need_inner_model", 'b'),
        ],
    ),
    (
        "UpscalerItem",
        &[("name", 's')],
        &[
            ("model_name", 's'),
            ("model_path", 's'),
            ("model_url", 's'),
            ("scale", 'n'),
        ],
    ),
    ("LatentUpscalerModeItem", &[("name", 's')], &[]),
    (
        "SDModelItem",
        &[("title", 's'), ("model_name", 's'), ("filename", 's')],
        &[("hash", 's'), ("sha256", 's'), ("config", 's')],
    ),
    ("SDVaeItem", &[("model_name", 's'), ("filename", 's')], &[]),
    ("HypernetworkItem", &[("name", 's')], &[("path", 's')]),
    ("FaceRestorerItem", &[("name", 's')], &[("cmd_dir", 's')]),
    (
        "RealesrganItem",
        &[("name", 's')],
        &[("path", 's'), ("scale", 'i')],
    ),
    (
        "PromptStyleItem",
        &[("name", 's')],
        &[("prompt", 's'), ("negative_prompt", 's')],
    ),
    (
        "EmbeddingItem",
        &[("shape", 'i'), ("vectors", 'i')],
        &[
            ("step", 'i'),
            ("sd_checkpoint", 's'),
            ("sd_checkpoint_name", 's'),
        ],
    ),
    (
        "EmbeddingsResponse",
        &[("loaded", 'o'), ("skipped", 'o')],
        &[],
    ),
    (
        "ErrorResponse",
        &[
            ("error", 's'),
            ("detail", 's'),
            ("body", 's'),
            ("errors", 's'),
        ],
        &[],
    ),
    ("CreateResponse", &[("info", 's')], &[]),
    ("TrainResponse", &[("info", 's')], &[]),
    ("MemoryResponse", &[("ram", 'o'), ("cuda", 'o')], &[]),
    ("ScriptsList", &[], &[("txt2img", 'L'), ("img2img", 'L')]),
    (
        "ScriptInfo",
        &[("args", 'L')],
        &[("name", 's'), ("is_alwayson", 'b'), ("is_img2img", 'b')],
    ),
    (
        "ScriptArg",
        &[],
        &[
            ("label", 's'),
            ("value", '*'),
            ("minimum", '*'),
            ("maximum", '*'),
            ("step", '*'),
            ("choices", 'S'),
        ],
    ),
    (
        "ExtensionItem",
        &[
            ("name", 's'),
            ("remote", 's'),
            ("branch", 's'),
            ("commit_hash", 's'),
            ("version", 's'),
            ("commit_date", 's'),
            ("enabled", 'b'),
        ],
        &[],
    ),
];

fn answer_schema(name: &str, required: &[Member], optional: &[Member]) -> Value {
    let property = |(member, kind): &Member, nullable: bool| {
        let mut schema = member_schema(*kind);
        schema["title"] = json!(title(member));
        if nullable {
            schema["nullable"] = json!(true);
        }
        ((*member).to_owned(), schema)
    };
    let always = required.iter().map(|member| property(member, false));
    let perhaps = optional.iter().map(|member| property(member, true));
    let properties: Map<String, Value> = always.chain(perhaps).collect();
    let mut schema = json!({"title": name, "type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = required.iter().map(|(member, _)| *member).collect();
    }
    schema
}

fn member_schema(kind: char) -> Value {
    match kind {
        's' => json!({"type": "string"}),
        'i' => json!({"type": "integer"}),
        'n' => json!({"type": "number"}),
        'b' => json!({"type": "boolean"}),
        'o' => json!({"type": "object"}),
        'S' => json!({"type": "array", "items": {"type": "string"}}),
        'L' => json!({"type": "array", "items": {}}),
        _ => json!({}),
    }
}

fn options_schema() -> Value {
    let properties: Map<String, Value> = option_table()
        .iter()
        .map(|entry| {
            let mut schema = match entry.kind {
                OptionKind::Bool => json!({"type": "boolean"}),
                OptionKind::Int | OptionKind::Float => json!({"type": "number"}),
                OptionKind::Str | OptionKind::Html => json!({"type": "string"}),
                OptionKind::List => json!({"type": "array", "items": {}}),
                OptionKind::Null => json!({}),
            };
            schema["title"] = json!(title(&entry.key));
            schema["description"] = json!(entry.meaning);
            if !entry.default.is_null() {
                schema["default"] = entry.default.clone();
            }
            (entry.key.clone(), schema)
        })
        .collect();
    json!({"title": "Options", "type": "object", "properties": properties})
}
