package warm

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAllot(t *testing.T) {
	const mb = 1 << 20
	for name, tc := range map[string]struct {
		needs  []need
		budget int64
		want   []int
	}{
		"nothing":                       {nil, 100 * mb, []int{}},
		"no budget":                     {[]need{{want: 3, memory: mb}}, 0, []int{0}},
		"all fit":                       {[]need{{want: 3, memory: mb}, {want: 2, memory: mb}}, 5 * mb, []int{3, 2}},
		"the busier one first":          {[]need{{want: 1, memory: mb, rate: 1}, {want: 1, memory: mb, rate: 2}}, mb, []int{0, 1}},
		"by turns":                      {[]need{{want: 9, memory: mb, rate: 1}, {want: 9, memory: mb, rate: 2}}, 5 * mb, []int{2, 3}},
		"what each needs comes first":   {[]need{{want: 9, memory: mb, rate: 9}, {want: 2, least: 2, memory: mb}}, 4 * mb, []int{2, 2}},
		"too large for what there is":   {[]need{{want: 1, memory: 8 * mb, rate: 9}, {want: 3, memory: mb}}, 4 * mb, []int{0, 3}},
		"a least above what is wanted":  {[]need{{want: 1, least: 4, memory: mb}}, 9 * mb, []int{1}},
		"a machine that costs nothing?": {[]need{{want: 2}}, 0, []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := allot(tc.needs, tc.budget); !slices.Equal(got, tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
		})
	}
}

func TestAllotKeepsToTheBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		needs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) need {
			return need{
				want: rapid.IntRange(0, 50).Draw(t, "want"), least: rapid.IntRange(0, 5).Draw(t, "least"),
				rate: rapid.Float64Range(0, 100).Draw(t, "rate"), memory: rapid.Int64Range(1, 100).Draw(t, "memory"),
			}
		}), 0, 10).Draw(t, "needs")
		budget := rapid.Int64Range(0, 2000).Draw(t, "budget")
		got := allot(needs, budget)
		var spent int64
		for i, n := range needs {
			if got[i] > n.want {
				t.Fatalf("kind %d got %d of %d", i, got[i], n.want)
			}
			spent += int64(got[i]) * n.memory
		}
		if spent > budget {
			t.Fatalf("%d spent of %d", spent, budget)
		}
		for i, n := range needs {
			if got[i] < n.want && n.memory <= budget-spent {
				t.Fatalf("kind %d got %d of %d though %d are left", i, got[i], n.want, budget-spent)
			}
		}
	})
}
