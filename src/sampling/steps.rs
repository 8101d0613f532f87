//! How many steps img2img and the hires pass run (A1111's `setup_img2img_steps`).

/// Steps of the schedule, and the count of its last ones that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Img2ImgSteps {
    /// Steps that the schedule is made for.
    pub schedule_steps: usize,
    /// k-diffusion samplers run `t_enc + 1` steps, timestep samplers see `t_enc` timesteps.
    pub t_enc: i64,
}

/// Steps of an img2img pass. `fixed` is true for the hires pass and with the option
/// `img2img_fix_steps`: exactly as many steps run as asked for.
#[must_use]
pub fn img2img_steps(step_count: usize, denoising_strength: f64, fixed: bool) -> Img2ImgSteps {
    let strength = denoising_strength.min(0.999);
    if fixed {
        let schedule_steps = if denoising_strength > 0.0 {
            (step_count as f64 / strength) as usize
        } else {
            0
        };
        Img2ImgSteps {
            schedule_steps,
            t_enc: step_count as i64 - 1,
        }
    } else {
        Img2ImgSteps {
            schedule_steps: step_count,
            t_enc: (strength * step_count as f64) as i64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_denoising_strength() {
        let cases = [
            (20, 0.75, false, 20, 15),
            (20, 0.5, false, 20, 10),
            (20, 1.0, false, 20, 19),
            (20, 0.05, false, 20, 1),
            (20, 0.0, false, 20, 0),
            (20, 0.7, true, 28, 19),
            (10, 0.35, true, 28, 9),
            (20, 0.0, true, 0, 19),
        ];
        for (step_count, strength, fixed, schedule_steps, t_enc) in cases {
            assert_eq!(
                img2img_steps(step_count, strength, fixed),
                Img2ImgSteps {
                    schedule_steps,
                    t_enc
                }
            );
        }
    }
}
