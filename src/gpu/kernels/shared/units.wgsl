// Tiles that the matrix units multiply: S×S of f16, summed in f32, by a subgroup of LANES. EIGHT: S is 8, not 16.
#ifdef EIGHT
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
const S = 8u;
const LANES = 8u;
#else
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
const S = 16u;
const LANES = 32u;
#endif
