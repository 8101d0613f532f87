//! Layers on the processor's matrix unit as operators that graphs can name.

use std::cell::RefCell;

use matrix_unit::{CHANNEL_MULTIPLE, Convolution, Linear, MatrixUnit};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

/// Domain of the operators.
pub const DOMAIN: &str = "ancestral";
/// Version of the domain.
pub const VERSION: i64 = 1;
/// `y = x wᵀ + b` of `x [rows, in]`, `w [out, in]` and `b [out]`, which may be left out; see [`Linear`].
pub const LINEAR: &str = "Linear";
/// A convolution of `x [n, in, h, w]` with `w [out, in, k, k]` and `b [out]`, which may be left out; see [`Convolution`].
pub const CONVOLUTION: &str = "Convolution";

/// Whether a layer of so many outputs and inputs can be one of the operators.
#[must_use]
pub fn fits(out: usize, width: usize) -> bool {
    let is_multiple = |channels: usize| channels > 0 && channels.is_multiple_of(CHANNEL_MULTIPLE);
    is_multiple(out) && is_multiple(width)
}

/// The operators, for sessions whose operators have so many threads.
///
/// # Errors
/// The runtime's own.
pub(super) fn domain(unit: MatrixUnit, threads: usize) -> ort::Result<OperatorDomain> {
    let layer = |kind| Layer {
        kind,
        unit,
        threads,
    };
    let domain = OperatorDomain::new(DOMAIN)?
        .add(layer(Kind::Linear))?
        .add(layer(Kind::Convolution))?;
    Ok(domain)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear,
    Convolution,
}

/// One of the operators, and what it is computed by.
#[derive(Debug, Clone, Copy)]
struct Layer {
    kind: Kind,
    unit: MatrixUnit,
    threads: usize,
}

impl Operator for Layer {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        match self.kind {
            Kind::Linear => LINEAR,
            Kind::Convolution => CONVOLUTION,
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = TensorElementType::Float32;
        [
            OperatorInput::required(float),
            OperatorInput::required(float),
            OperatorInput::optional(float),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel(&self, _: &KernelContext<'_>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for Layer {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let x = context.input(0)?.ok_or_else(missing)?;
        let weight = context.input(1)?.ok_or_else(missing)?;
        let bias = if context.num_inputs()? > 2 {
            context.input(2)?
        } else {
            None
        };
        let (x_dims, x) = sizes(&x)?;
        let (weight_dims, weight) = sizes(&weight)?;
        let (bias_dims, bias) = bias.as_ref().map(sizes).transpose()?.unzip();
        let out = weight_dims.first().copied().unwrap_or_default();
        let bias_fits = bias_dims.as_ref().is_none_or(|dims| *dims == [out]);
        let operands = (x, weight, bias);
        let failure = RefCell::new(None);
        let each = |total: usize, work: &(dyn Fn(usize) + Send + Sync)| {
            if let Err(error) = context.par_for(total, 0, work) {
                failure.replace(Some(error));
            }
        };
        let threads = self.threads;
        match (self.kind, &x_dims[..], &weight_dims[..]) {
            (Kind::Linear, &[rows, width], &[_, inner])
                if bias_fits && inner == width && fits(out, width) =>
            {
                let mut y = context.output(0, [rows, out])?.ok_or_else(missing)?;
                let (_, y) = y.try_extract_tensor_mut::<f32>()?;
                let layer = Linear { rows, width, out };
                layer.run(self.unit, operands, y, threads, &each);
            }
            (Kind::Convolution, &[images, channels, height, width], &[_, inner, side, other])
                if bias_fits
                    && inner == channels
                    && side == other
                    && (side == 1 || side == 3)
                    && fits(out, channels) =>
            {
                let dims = [images, out, height, width];
                let mut y = context.output(0, dims)?.ok_or_else(missing)?;
                let (_, y) = y.try_extract_tensor_mut::<f32>()?;
                let layer = Convolution {
                    images,
                    channels,
                    out,
                    height,
                    width,
                    side,
                };
                layer.run(self.unit, operands, y, threads, &each);
            }
            _ => {
                return Err(ort::Error::new(format!(
                    "{} of {x_dims:?} cannot be computed with weights {weight_dims:?} and bias {bias_dims:?}",
                    self.name()
                )));
            }
        }
        failure.into_inner().map_or(Ok(()), Err)
    }
}

/// Dimensions and values of a float tensor.
fn sizes<'a>(value: &'a ValueRef<'_>) -> ort::Result<(Vec<usize>, &'a [f32])> {
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    let dims = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0));
    Ok((dims.collect(), values))
}
