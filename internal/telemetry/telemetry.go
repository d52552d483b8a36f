// Package telemetry counts what the parts of Tartarus do, in the format of Prometheus. Nothing is global: a process makes one Registry and hands its
// counters to the parts, which know them by interfaces of their own. No label ever holds what a client chose, so that the number of series is fixed.
package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tartarus-sandbox/tartarus"
)

// Registry holds the metrics of a process.
type Registry struct{ reg *prometheus.Registry }

// New makes a registry that knows the program and its process.
func New(version string) *Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tartarus_build_info", Help: "The version that runs; always 1."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	reg.MustRegister(info)
	return &Registry{reg}
}

// Handler answers with everything there is. One part that cannot say how it stands does not hide the others.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime})
}

// Scrapes are answered in milliseconds; what asks more often than this is no Prometheus.
const (
	maxScrapes = 4
	scrapeTime = 5 * time.Second
)

// Node counts what happens on a node. It implements hecatoncheir.Meter.
type Node struct {
	starts, ends, hibernations, wakes *prometheus.CounterVec
	start, end, hibernation, wake     prometheus.Histogram
	cancelled, serial, forbidden      prometheus.Counter
	disk, network, throttled          *prometheus.CounterVec
}

// Buckets in seconds. A claim of a warm machine takes 10 ms and a cold start 100; an end without grace takes 30 ms, one with it as long as that is.
var (
	startBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	endBuckets   = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	sleepBuckets = []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
)

// Node makes the counters of a node and registers them. It is called once for a registry.
func (r *Registry) Node() *Node {
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		r.reg.MustRegister(c)
		return c
	}
	hist := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		r.reg.MustRegister(h)
		return h
	}
	n := &Node{
		starts:       vec("tartarus_starts_total", "Starts that are over: ok, or the kind of the error.", "result"),
		start:        hist("tartarus_start_seconds", "From the lease of a start until the sandbox runs.", startBuckets),
		ends:         vec("tartarus_ends_total", "Sandboxes of which nothing is left, by the reason of their end.", "reason"),
		end:          hist("tartarus_end_seconds", "From the begin of an end, its grace included, until nothing is left.", endBuckets),
		hibernations: vec("tartarus_hibernations_total", "Attempts to put idle sandboxes to sleep: ok, or the kind of the error.", "result"),
		hibernation:  hist("tartarus_hibernation_seconds", "From the decision until the sandbox is on disk and its memory free.", sleepBuckets),
		wakes:        vec("tartarus_wakes_total", "Attempts to wake hibernated sandboxes: ok, or the kind of the error.", "result"),
		wake:         hist("tartarus_wake_seconds", "From the call or connection that woke a sandbox until it runs.", sleepBuckets),
		cancelled:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tartarus_terminations_cancelled_total", Help: "Terminations that somebody called off."}),
		serial:       prometheus.NewCounter(prometheus.CounterOpts{Name: "tartarus_microvm_serial_bytes_total", Help: "What guests wrote on their serial ports."}),
		forbidden:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tartarus_microvm_forbidden_calls_total", Help: "System calls that monitors made and may not make."}),
		disk:         vec("tartarus_microvm_disk_bytes_total", "What guests read and wrote on their disks.", "direction"),
		network:      vec("tartarus_microvm_network_bytes_total", "What guests received and sent.", "direction"),
		throttled:    vec("tartarus_microvm_throttled_total", "Times that a rate held up a device.", "device"),
	}
	r.reg.MustRegister(n.cancelled, n.serial, n.forbidden)
	// A series that is there from the start can be counted from zero.
	for _, c := range []*prometheus.CounterVec{n.starts, n.hibernations, n.wakes} {
		c.WithLabelValues(ok)
	}
	n.Devices(tartarus.DeviceCounts{})
	return n
}

const ok = "ok"

// result is the label of an outcome: ok, or one of the kinds of error.
func result(err error) string {
	if err == nil {
		return ok
	}
	kind := tartarus.KindOf(err)
	if !kind.Known() {
		kind = tartarus.Internal
	}
	return string(kind)
}

func count(c *prometheus.CounterVec, h prometheus.Histogram, took time.Duration, err error) {
	c.WithLabelValues(result(err)).Inc()
	if err == nil { // what failed says nothing about how long it takes
		h.Observe(took.Seconds())
	}
}

// Created implements hecatoncheir.Meter.
func (n *Node) Created(took time.Duration, err error) { count(n.starts, n.start, took, err) }

// Ended implements hecatoncheir.Meter.
func (n *Node) Ended(reason tartarus.Reason, took time.Duration) {
	n.ends.WithLabelValues(string(reason)).Inc()
	n.end.Observe(took.Seconds())
}

// Cancelled implements hecatoncheir.Meter.
func (n *Node) Cancelled() { n.cancelled.Inc() }

// Hibernated implements hecatoncheir.Meter.
func (n *Node) Hibernated(took time.Duration, err error) {
	count(n.hibernations, n.hibernation, took, err)
}

// Woken implements hecatoncheir.Meter.
func (n *Node) Woken(took time.Duration, err error) { count(n.wakes, n.wake, took, err) }

// Devices implements hecatoncheir.Meter. All machines of the node are one series: a sandbox's own figures are its own metrics.
func (n *Node) Devices(c tartarus.DeviceCounts) {
	n.disk.WithLabelValues("read").Add(float64(c.DiskRead))
	n.disk.WithLabelValues("written").Add(float64(c.DiskWritten))
	n.network.WithLabelValues("received").Add(float64(c.NetReceived))
	n.network.WithLabelValues("sent").Add(float64(c.NetSent))
	n.throttled.WithLabelValues("disk").Add(float64(c.DiskThrottled))
	n.throttled.WithLabelValues("network").Add(float64(c.NetThrottled))
	n.serial.Add(float64(c.SerialWritten))
	n.forbidden.Add(float64(c.Forbidden))
}

// State is what a node has at the moment of a scrape.
type State struct {
	Phases      map[tartarus.Phase]int
	Terminating int
	Hibernated  int
	Freed       int64 // bytes
	Guests      int   // in virtual machines, that say of their memory how it stands
	Guest       tartarus.GuestMemory
}

// Watch registers what a node has; state is asked at every scrape, perhaps by several at once.
func (r *Registry) Watch(state func() State) { r.reg.MustRegister(&watcher{state}) }

type watcher struct{ state func() State }

var (
	descPhase       = prometheus.NewDesc("tartarus_node_sandboxes", "Sandboxes that the node holds, by phase.", []string{"phase"}, nil)
	descTerminating = prometheus.NewDesc("tartarus_node_terminations_pending", "Sandboxes that have their grace now.", nil, nil)
	descHibernated  = prometheus.NewDesc("tartarus_node_hibernated_sandboxes", "Paused sandboxes that sleep because nothing used them.", nil, nil)
	descGuests      = prometheus.NewDesc("tartarus_microvm_guests", "Guests in virtual machines that say of their memory how it stands.", nil, nil)
	descGuest       = prometheus.NewDesc("tartarus_microvm_guest_memory_bytes", "Memory of these guests together, as they say themselves.", []string{"kind"}, nil)
	descFreed       = prometheus.NewDesc("tartarus_node_hibernated_memory_bytes", "Memory that hibernated sandboxes held before they went to sleep.", nil, nil)
)

// Describe implements prometheus.Collector.
func (w *watcher) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPhase, descTerminating, descHibernated, descFreed, descGuests, descGuest} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (w *watcher) Collect(out chan<- prometheus.Metric) {
	s := w.state()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range tartarus.Phases {
		if !p.Ended() {
			gauge(descPhase, float64(s.Phases[p]), string(p))
		}
	}
	gauge(descTerminating, float64(s.Terminating))
	gauge(descHibernated, float64(s.Hibernated))
	gauge(descFreed, float64(s.Freed))
	gauge(descGuests, float64(s.Guests))
	for kind, n := range map[string]int64{
		"total": s.Guest.Total, "free": s.Guest.Free, "available": s.Guest.Available, "cached": s.Guest.Cached, "returned": s.Guest.Returned,
	} {
		gauge(descGuest, float64(n), kind)
	}
}
