//! The routes of training, which this server does not do; they answer in A1111's shapes.

use actix_web::HttpResponse;
use serde_json::json;

use super::respond::json as json_answer;

const REASON: &str = "this server runs models and does not train them";

/// `POST /sdapi/v1/create/embedding`
pub(super) async fn create_embedding() -> HttpResponse {
    json_answer(&json!({"info": format!("create embedding error: {REASON}")}))
}

/// `POST /sdapi/v1/create/hypernetwork`
pub(super) async fn create_hypernetwork() -> HttpResponse {
    json_answer(&json!({"info": format!("create hypernetwork error: {REASON}")}))
}

/// `POST /sdapi/v1/train/embedding`
pub(super) async fn train_embedding() -> HttpResponse {
    json_answer(&json!({"info": format!("train embedding error: {REASON}")}))
}

/// `POST /sdapi/v1/train/hypernetwork`
pub(super) async fn train_hypernetwork() -> HttpResponse {
    json_answer(&json!({"info": format!("train hypernetwork error: {REASON}")}))
}
