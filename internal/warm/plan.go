package warm

import "slices"

// need is how many machines of one kind are wanted, and what each costs.
type need struct {
	want   int
	least  int     // of them, to be met before anything above it of any kind
	rate   float64 // arrivals per second, times what making one is stretched by: who comes first when memory is short
	memory int64   // bytes of one
}

// allot gives every kind its share of budget bytes: first what each needs at the least, the busiest kind first, then the rest by turns. A kind
// whose machine does not fit gets none of it.
func allot(needs []need, budget int64) []int {
	got := make([]int, len(needs))
	order := make([]int, len(needs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case needs[a].rate > needs[b].rate:
			return -1
		case needs[a].rate < needs[b].rate:
			return 1
		}
		return 0
	})
	grow := func(limit func(need) int) {
		for more := true; more; {
			more = false
			for _, i := range order {
				n := needs[i]
				if got[i] < limit(n) && n.memory <= budget {
					got[i]++
					budget -= n.memory
					more = true
				}
			}
		}
	}
	grow(func(n need) int { return min(n.least, n.want) })
	grow(func(n need) int { return n.want })
	return got
}
