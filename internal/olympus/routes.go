package olympus

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// headerRequest names the request in answers and in the log.
const headerRequest = "X-Request-Id"

// anyone is the access rule of routes that need no key.
const anyone tenant.Role = "anyone"

// route is a row of the one table that says what the API has, and who may use it.
//
// The permission to exec is no row's rule, because no process is started here: a key without it is told no sandbox's agent token.
type route struct {
	method  string
	pattern string
	role    tenant.Role // least role, anyone, or byVolume
	handle  func(s *Server, w http.ResponseWriter, r *http.Request, who caller) error
}

// caller is who makes a request.
type caller struct {
	key     tenant.Key
	volume  volume.Claims // of the routes of a volume's content, in the place of key
	request string        // id of the request
	now     time.Time
	act     *act // how the request is recorded
}

var routes = []route{
	{"GET", "/health", anyone, (*Server).health},
	{"GET", "/healthz", anyone, (*Server).health},
	{"GET", "/readyz", anyone, (*Server).ready},
	{"GET", "/openapi.yaml", anyone, (*Server).document},
	{"GET", "/metrics", tenant.Operator, (*Server).scrape},
	{"GET", "/.well-known/jwks.json", anyone, (*Server).keySet},
	{"GET", "/.well-known/openid-configuration", anyone, (*Server).discovery},

	{"GET", "/audit", tenant.Operator, (*Server).listAudit},
	{"GET", "/audit/export", tenant.Operator, (*Server).exportAudit},
	{"GET", "/audit/verification", tenant.Operator, (*Server).verifyAudit},
	{"GET", "/audit/keys", tenant.Operator, (*Server).listAuditKeys},
	{"POST", "/audit/keys", tenant.Admin, (*Server).rotateAuditKey},
	{"PUT", "/audit/keys/{keyID}", tenant.Admin, (*Server).trustAuditKey},
	{"DELETE", "/audit/keys/{keyID}", tenant.Admin, (*Server).distrustAuditKey},

	{"GET", "/policies", tenant.Operator, (*Server).listPolicies},
	{"GET", "/policies/{policy}", tenant.Operator, (*Server).getPolicy},
	{"GET", "/policies/{policy}/versions", tenant.Operator, (*Server).policyHistory},
	{"PUT", "/policies/{policy}", tenant.Operator, (*Server).applyPolicy},
	{"DELETE", "/policies/{policy}", tenant.Operator, (*Server).removePolicy},
	{"POST", "/policies/{policy}/rollbacks", tenant.Operator, (*Server).rollBackPolicy},
	{"POST", "/policies/explain", tenant.Operator, (*Server).explainPolicies},

	{"POST", "/tenants", tenant.Admin, (*Server).createTenant},
	{"GET", "/tenants", tenant.Operator, (*Server).listTenants},
	{"GET", "/tenants/{tenant}", tenant.Operator, (*Server).getTenant},
	{"PATCH", "/tenants/{tenant}", tenant.Admin, (*Server).changeTenant},
	{"DELETE", "/tenants/{tenant}", tenant.Admin, (*Server).deleteTenant},
	{"POST", "/keys", tenant.Admin, (*Server).createKey},
	{"GET", "/keys", tenant.Admin, (*Server).listKeys},
	{"POST", "/keys/{keyID}/rotations", tenant.Admin, (*Server).rotateKey},
	{"DELETE", "/keys/{keyID}", tenant.Admin, (*Server).revokeKey},

	{"POST", "/sandboxes", tenant.Developer, (*Server).createV1},
	{"POST", "/v2/sandboxes", tenant.Developer, (*Server).createV2},
	{"GET", "/sandboxes", tenant.Reader, (*Server).listV1},
	{"GET", "/v2/sandboxes", tenant.Reader, (*Server).listV2},
	{"GET", "/sandboxes/metrics", tenant.Reader, (*Server).metricsBatch},
	{"GET", "/sandboxes/{sandboxID}", tenant.Reader, (*Server).detail},
	{"DELETE", "/sandboxes/{sandboxID}", tenant.Developer, (*Server).kill},
	{"DELETE", "/sandboxes/{sandboxID}/termination", tenant.Developer, (*Server).cancelTermination},
	{"POST", "/sandboxes/{sandboxID}/connect", tenant.Developer, (*Server).connectV1},
	{"POST", "/v2/sandboxes/{sandboxID}/connect", tenant.Developer, (*Server).connectV2},
	{"POST", "/sandboxes/{sandboxID}/pause", tenant.Developer, (*Server).pause},
	{"POST", "/sandboxes/{sandboxID}/resume", tenant.Developer, (*Server).resume},
	{"POST", "/sandboxes/{sandboxID}/fork", tenant.Developer, (*Server).fork},
	{"POST", "/sandboxes/{sandboxID}/snapshots", tenant.Developer, (*Server).createSnapshot},
	{"POST", "/sandboxes/{sandboxID}/timeout", tenant.Developer, (*Server).timeout},
	{"POST", "/sandboxes/{sandboxID}/refreshes", tenant.Developer, (*Server).refresh},
	{"PUT", "/sandboxes/{sandboxID}/network", tenant.Developer, (*Server).setNetwork},
	{"GET", "/sandboxes/{sandboxID}/metrics", tenant.Reader, (*Server).metrics},
	{"GET", "/sandboxes/{sandboxID}/logs", tenant.Reader, (*Server).logsV1},
	{"GET", "/v2/sandboxes/{sandboxID}/logs", tenant.Reader, (*Server).logsV2},

	{"POST", "/sandboxes/{sandboxID}/quarantine", tenant.Operator, (*Server).quarantine},
	{"GET", "/quarantine", tenant.Operator, (*Server).listQuarantined},
	{"GET", "/quarantine/{sandboxID}", tenant.Operator, (*Server).evidence},
	{"POST", "/quarantine/{sandboxID}/inspections", tenant.Operator, (*Server).examine},
	{"POST", "/quarantine/{sandboxID}/release", tenant.Operator, (*Server).release},
	{"DELETE", "/quarantine/{sandboxID}", tenant.Operator, (*Server).destroy},

	{"POST", "/secrets", tenant.Developer, (*Server).createSecret},
	{"GET", "/secrets", tenant.Reader, (*Server).listSecrets},
	{"GET", "/secrets/{secretID}", tenant.Reader, (*Server).getSecret},
	{"POST", "/secrets/{secretID}", tenant.Developer, (*Server).updateSecret},
	{"DELETE", "/secrets/{secretID}", tenant.Developer, (*Server).deleteSecret},

	{"POST", "/volumes", tenant.Developer, (*Server).createVolume},
	{"GET", "/volumes", tenant.Reader, (*Server).listVolumes},
	{"GET", "/volumes/{volumeID}", tenant.Reader, (*Server).getVolume},
	{"DELETE", "/volumes/{volumeID}", tenant.Developer, (*Server).deleteVolume},
	{"GET", "/volumecontent/{volumeID}/dir", byVolume, (*Server).listVolumeDir},
	{"POST", "/volumecontent/{volumeID}/dir", byVolume, (*Server).makeVolumeDir},
	{"GET", "/volumecontent/{volumeID}/file", byVolume, (*Server).getVolumeFile},
	{"PUT", "/volumecontent/{volumeID}/file", byVolume, (*Server).putVolumeFile},
	{"GET", "/volumecontent/{volumeID}/path", byVolume, (*Server).getVolumePath},
	{"PATCH", "/volumecontent/{volumeID}/path", byVolume, (*Server).setVolumePath},
	{"DELETE", "/volumecontent/{volumeID}/path", byVolume, (*Server).deleteVolumePath},

	{"GET", "/snapshots", tenant.Reader, (*Server).listSnapshots},
	{"GET", "/snapshots/{snapshotID}", tenant.Reader, (*Server).inspectSnapshot},
	{"POST", "/snapshots/{snapshotID}/verify", tenant.Developer, (*Server).verifySnapshot},
	{"DELETE", "/templates/{templateID}", tenant.Developer, (*Server).deleteTemplate},

	{"GET", "/templates", tenant.Reader, (*Server).listTemplates},
	{"GET", "/templates/aliases/{alias}", tenant.Reader, (*Server).getAlias},
	{"GET", "/teams", tenant.Reader, (*Server).listTeams},
	{"POST", "/placements", tenant.Operator, (*Server).explainPlacement},
	{"GET", "/nodes", tenant.Operator, (*Server).listNodes},
	{"GET", "/nodes/{node}", tenant.Operator, (*Server).getNode},
	{"DELETE", "/nodes/{node}", tenant.Operator, (*Server).removeNode},
	{"POST", "/nodes/{node}/cordon", tenant.Operator, (*Server).cordonNode},
	{"POST", "/nodes/{node}/uncordon", tenant.Operator, (*Server).uncordonNode},
	{"POST", "/nodes/{node}/drain", tenant.Operator, (*Server).drainNode},
	{"PATCH", "/nodes/{node}/labels", tenant.Operator, (*Server).labelNode},
	{"POST", "/fleet/tokens", tenant.Operator, (*Server).makeToken},
	{"GET", "/queue", tenant.Operator, (*Server).listJobs},
	{"POST", "/queue/purge", tenant.Operator, (*Server).purgeQueue},
	{"GET", "/queue/{job}", tenant.Operator, (*Server).getJob},
	{"POST", "/queue/{job}/requeue", tenant.Operator, (*Server).requeueJob},
	{"POST", "/queue/{job}/cancel", tenant.Operator, (*Server).cancelJob},
}

// router serves the table.
func (s *Server) router() http.Handler {
	mux := chi.NewRouter()
	for _, rt := range routes {
		mux.Method(rt.method, rt.pattern, s.endpoint(rt))
	}
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "there is no route "+r.Method+" "+r.URL.Path, "not_found")
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		allow := allowed(mux, r.URL.Path)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		refuse(w, http.StatusMethodNotAllowed, r.URL.Path+" has no "+r.Method, "method_not_allowed")
	})
	return mux
}

// allowed lists the methods of a path.
func allowed(mux chi.Routes, path string) []string {
	var out []string
	for _, rt := range routes {
		if !slices.Contains(out, rt.method) && mux.Match(chi.NewRouteContext(), rt.method, path) {
			out = append(out, rt.method)
		}
	}
	return out
}

// endpoint is what every row does around its handler.
func (s *Server) endpoint(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := caller{request: newRequestID(), now: time.Now()}
		w.Header().Set(headerRequest, who.request)
		defer s.catch(w, r)
		err := s.enter(rt.role, r, &who)
		if err == nil || who.key.ID != "" {
			who.act = s.recorder.actOf(rt, r, who)
		}
		switch {
		case err == nil:
			err = s.perform(rt, w, r, who)
		case tartarus.Is(err, tartarus.Unauthenticated), tartarus.Is(err, tartarus.Forbidden) && who.key.ID == "":
			s.recorder.loginFailed(r, who, err)
		case tartarus.Is(err, tartarus.Forbidden):
			who.act.refused(r.Context(), err)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

// perform does what a request asks for, between the two records that tell of it.
func (s *Server) perform(rt route, w http.ResponseWriter, r *http.Request, who caller) (err error) {
	err = errPanicked // unless it gets further
	defer func() { who.act.finish(err) }()
	if who.act != nil && !who.act.judged {
		if err = who.act.begin(r.Context()); err != nil {
			return err
		}
		err = errPanicked
	}
	err = rt.handle(s, w, r, who)
	return err
}

// enter checks that the caller may pass.
func (s *Server) enter(role tenant.Role, r *http.Request, who *caller) error {
	switch role {
	case anyone:
		return nil
	case byVolume:
		return s.enterVolume(r, who)
	}
	key, err := s.gate.authenticate(r.Context(), r.Header, who.now)
	if err != nil {
		return err
	}
	if err := s.gate.admit(key, who.now); err != nil {
		return err
	}
	who.key = key
	if !key.Role.Covers(role) {
		whose := "the API key has"
		if key.Person {
			whose = "you have"
		}
		return tartarus.Errorf(tartarus.Forbidden, "this needs the role %s; %s %s", role, whose, key.Role)
	}
	return nil
}

func newRequestID() string {
	var b [8]byte
	for i, v := 0, rand.Uint64(); i < len(b); i++ {
		b[i] = byte(v >> (8 * i))
	}
	return hex.EncodeToString(b[:])
}

// health says that the process answers.
func (s *Server) health(w http.ResponseWriter, _ *http.Request, _ caller) error {
	writeJSON(w, http.StatusOK, api.Health{Status: "ok", Version: s.cfg.Version})
	return nil
}

// readyTime bounds the look at the store: whoever asks, asks again.
const readyTime = 2 * time.Second

// ready says that creates can work: the store answers and a node lives.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.placer.check(r.Context(), readyTime, who.now); err != nil {
		return err
	}
	return s.health(w, r, who)
}

// scrape serves the counters of this process.
func (s *Server) scrape(w http.ResponseWriter, r *http.Request, _ caller) error {
	if s.cfg.Metrics == nil {
		return tartarus.Errorf(tartarus.NotFound, "this server keeps no metrics")
	}
	s.cfg.Metrics.ServeHTTP(w, r)
	return nil
}

// document serves the description of all this.
func (s *Server) document(w http.ResponseWriter, _ *http.Request, _ caller) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(api.Document)
	return nil
}
