package guest_test

import (
	"io"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// BenchmarkExec runs echo through the agent over loopback and, in turns, directly: the difference is what the agent costs.
func BenchmarkExec(b *testing.B) {
	a := start(b)
	var through, direct []time.Duration
	for b.Loop() {
		began := time.Now()
		exit, err := a.client.Run(b.Context(), guestclient.Command{Argv: []string{"/bin/echo", "hi"}, User: "root"}, nil, io.Discard, io.Discard)
		if err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
		through = append(through, time.Since(began))
		began = time.Now()
		if _, err := exec.Command("/bin/echo", "hi").Output(); err != nil {
			b.Fatal(err)
		}
		direct = append(direct, time.Since(began))
	}
	slices.Sort(through)
	slices.Sort(direct)
	b.ReportMetric(through[len(through)/2].Seconds()*1e3, "agent-p50-ms")
	b.ReportMetric(through[len(through)*99/100].Seconds()*1e3, "agent-p99-ms")
	b.ReportMetric(direct[len(direct)/2].Seconds()*1e3, "direct-p50-ms")
}

// BenchmarkInit is what every new sandbox waits for: a request that changes nothing, the same identity again, and another one.
func BenchmarkInit(b *testing.B) {
	a := start(b)
	full := guestclient.Init{
		EnvVars: map[string]string{"A": "B"}, Timestamp: time.Now(), SandboxID: "ibox", TemplateID: "tpl", Hostname: "ibox",
		MachineID: "0123456789abcdef0123456789abcdef", Entropy: "MDEyMzQ1Njc4OWFiY2RlZg==", DNSServers: []string{"10.0.0.1"},
	}
	run := func(name string, request func(n int) guestclient.Init) {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for n := 0; b.Loop(); n++ {
				began := time.Now()
				if err := a.client.Init(b.Context(), request(n)); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
		})
	}
	run("nothing", func(int) guestclient.Init { return guestclient.Init{} })
	run("same", func(int) guestclient.Init { return full })
	run("another", func(n int) guestclient.Init {
		next := full
		next.SandboxID = []string{"ione", "itwo"}[n%2]
		next.Hostname = next.SandboxID
		next.MachineID = []string{full.MachineID, "f" + full.MachineID[1:]}[n%2]
		return next
	})
}
