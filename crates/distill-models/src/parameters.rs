//! Parameters by name: the path through the module tree is the Hugging Face tensor name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, FloatDType, Gradients, Tensor};

use crate::LlamaForCausalLM;
use crate::lora::{self, Adapter};

/// Flat tensors by parameter name, e.g. gradients or optimiser moments; `[elements]` each.
pub type NamedTensors = BTreeMap<String, Tensor<1>>;

/// Name and row-major dimensions of every parameter, in module order.
pub fn shapes(model: &LlamaForCausalLM) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Path, Vec<(String, Vec<usize>)>);
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push((self.0.name(), param.val().dims().to_vec()));
        }
    }
    let mut visitor = Shapes(Path::default(), Vec::new());
    model.visit(&mut visitor);
    visitor.1
}

/// Reads every parameter as row-major f32, in module order.
pub fn for_each(model: &LlamaForCausalLM, each: impl FnMut(&str, &[usize], Vec<f32>)) {
    struct Read<F>(Path, F);
    impl<F: FnMut(&str, &[usize], Vec<f32>)> ModuleVisitor for Read<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val().inner();
            let dims = tensor.dims();
            (self.1)(&self.0.name(), &dims, values(tensor));
        }
    }
    model.visit(&mut Read(Path::default(), each));
}

/// Every parameter as a flat tensor `[elements]`, in module order.
pub fn for_each_tensor(model: &LlamaForCausalLM, each: impl FnMut(&str, Tensor<1>)) {
    struct Read<F>(Path, F);
    impl<F: FnMut(&str, Tensor<1>)> ModuleVisitor for Read<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val().inner();
            let elements: usize = tensor.dims().iter().product();
            (self.1)(&self.0.name(), tensor.reshape([elements]));
        }
    }
    model.visit(&mut Read(Path::default(), each));
}

/// Replaces each parameter by what `map` makes of it. The tensor is `[elements]`, as is the answer;
/// nobody else holds it if nobody else holds the model.
pub fn map(
    model: LlamaForCausalLM,
    map: impl FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>,
) -> LlamaForCausalLM {
    struct Map<F>(Path, F);
    impl<F: FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>> ModuleMapper for Map<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, mapper) = param.consume();
            let dims = tensor.dims();
            let elements: usize = dims.iter().product();
            let tensor = (self.1)(&self.0.name(), &dims, tensor.reshape([elements]));
            Param::from_mapped_value(id, tensor.reshape(dims), mapper)
        }
    }
    model.map(&mut Map(Path::default(), map))
}

/// Replaces a model by what `map` makes of it, which is then the only one to hold its tensors.
pub fn replace(
    model: &mut LlamaForCausalLM,
    map: impl FnOnce(LlamaForCausalLM) -> LlamaForCausalLM,
) {
    let hollow = model.hollow();
    *model = map(std::mem::replace(model, hollow));
}

/// The same weights as leaves of a new autodiff graph; of an adapted model its factors alone.
pub fn tracked(model: &LlamaForCausalLM) -> LlamaForCausalLM {
    struct Track {
        frozen: bool,
    }
    impl ModuleMapper for Track {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, _) = param.consume();
            let tensor = tensor.inner().autodiff();
            Param::initialized(id, if self.frozen { tensor } else { tensor.require_grad() })
        }
    }
    let mut tracked = model.clone().map(&mut Track { frozen: model.is_adapted() });
    for (_, linear) in tracked.linears_mut() {
        linear.adapter = linear.adapter.as_ref().map(Adapter::tracked);
    }
    tracked
}

/// Takes the gradients of a [`tracked`] model and adds them to `into`.
pub fn accumulate_gradients(
    model: &LlamaForCausalLM,
    gradients: &mut Gradients,
    into: &mut NamedTensors,
) {
    struct Take<'a>(Path, &'a mut Gradients, &'a mut NamedTensors);
    impl ModuleVisitor for Take<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad_remove(self.1) {
                let elements: usize = gradient.dims().iter().product();
                let gradient = gradient.reshape([elements]);
                // Those of bf16 weights are summed in f32.
                let gradient = match gradient.dtype() {
                    DType::F32 => gradient,
                    _ => gradient.cast(FloatDType::F32),
                };
                add(self.2, self.0.name(), gradient);
            }
        }
    }
    if model.is_adapted() {
        return lora::accumulate(model, gradients, into);
    }
    model.visit(&mut Take(Path::default(), gradients, into));
}

/// Adds a flat tensor to the entry of that name.
pub fn add(tensors: &mut NamedTensors, name: String, tensor: Tensor<1>) {
    let sum = match tensors.remove(&name) {
        Some(present) => present + tensor,
        None => tensor,
    };
    tensors.insert(name, sum);
}

/// The elements of a tensor, row-major.
///
/// # Panics
/// If the device failed or the tensor is not f32: the models here hold nothing else.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("models hold f32 tensors")
}

/// The names of the modules on the way to a parameter.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }
    fn exit(&mut self) {
        self.0.pop();
    }
    fn name(&self) -> String {
        self.0.join(".")
    }
}
