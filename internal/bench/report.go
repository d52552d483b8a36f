// Package bench measures the product against floors made by hand in the same run, on the same machine and interleaved, so that a
// ratio means something though absolute times drift. A run in which anything failed is a failed run.
package bench

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what one benchmark found. Times are milliseconds.
type Report struct {
	What        string             `json:"what"`
	Runtime     string             `json:"runtime"`
	N           int                `json:"n"`
	Concurrency int                `json:"concurrency"`
	Warm        bool               `json:"warm"`
	Failed      int                `json:"failed"`
	P50         float64            `json:"p50_ms"`
	P90         float64            `json:"p90_ms"`
	P99         float64            `json:"p99_ms"`
	PerSecond   float64            `json:"per_second"`
	Floor       *Floor             `json:"floor,omitempty"`
	Ratio       float64            `json:"ratio,omitempty"`
	Stages      map[string]float64 `json:"stages,omitempty"` // p50 of each
	Extra       map[string]float64 `json:"extra,omitempty"`
	Host        Host               `json:"host"`
	Errors      []string           `json:"errors,omitempty"` // the first few, when Failed is not 0
}

// Floor is the least that the same work can cost: what the parts below us take when called by hand.
type Floor struct {
	How       string  `json:"how"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	PerSecond float64 `json:"per_second"`
}

// Host is where it was measured.
type Host struct {
	CPUs    int     `json:"cpus"`
	Kernel  string  `json:"kernel"`
	KVM     bool    `json:"kvm"` // the device is there, usable or not
	LoadAvg float64 `json:"loadavg"`
}

// maxErrors bounds how many failures a report quotes.
const maxErrors = 5

// fail counts a failure and quotes the first few.
func (r *Report) fail(err error) {
	r.Failed++
	if len(r.Errors) < maxErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}

// times fills in the quantiles of ours.
func (r *Report) times(d []time.Duration) {
	r.P50, r.P90, r.P99 = quantile(d, 50), quantile(d, 90), quantile(d, 99)
}

// quantile is the nearest-rank quantile in milliseconds; 0 for nothing.
func quantile(d []time.Duration, percent int) float64 {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	rank := (len(s)*percent + 99) / 100
	return ms(s[max(rank, 1)-1])
}

func ms(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// round keeps three digits behind the point: a microsecond, which is finer than what the clock of a busy host tells.
func round(f float64) float64 {
	out, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'f', 3, 64), 64)
	return out
}

func rate(n int, took time.Duration) float64 {
	if took <= 0 {
		return 0
	}
	return round(float64(n) / took.Seconds())
}

func thisHost() Host {
	h := Host{CPUs: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	_, err := os.Stat("/dev/kvm")
	h.KVM = err == nil
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		h.LoadAvg, _ = strconv.ParseFloat(strings.SplitN(string(b), " ", 2)[0], 64)
	}
	return h
}

// Text writes the report for people.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: %d runs, %d at once, %d failed\n", r.What, r.Runtime, r.N, r.Concurrency, r.Failed)
	fmt.Fprintf(&b, "  ours   p50 %.1f ms  p90 %.1f ms  p99 %.1f ms  %.1f/s\n", r.P50, r.P90, r.P99, r.PerSecond)
	if r.Floor != nil {
		fmt.Fprintf(&b, "  floor  p50 %.1f ms  p99 %.1f ms  %.1f/s  (%s)\n", r.Floor.P50, r.Floor.P99, r.Floor.PerSecond, r.Floor.How)
		fmt.Fprintf(&b, "  ratio  %.3f\n", r.Ratio)
	}
	for _, m := range []map[string]float64{r.Stages, r.Extra} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "  %-24s %.3f\n", k, m[k])
		}
	}
	for _, e := range r.Errors {
		fmt.Fprintf(&b, "  failed: %s\n", e)
	}
	return b.String()
}
