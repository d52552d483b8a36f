package olympus

import (
	"context"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// byVolume is the access rule of routes that take the token of a volume in the place of a key.
const byVolume tenant.Role = "volume"

// Volumes is what volumes are served from.
type Volumes struct {
	Store  volume.Store
	Files  *volume.Library
	Tokens *volume.Tokens
}

func (s *Server) volumes() (*Volumes, error) {
	if s.cfg.Volumes == nil {
		return nil, tartarus.Errorf(tartarus.Unsupported, "this server keeps no volumes")
	}
	return s.cfg.Volumes, nil
}

// createVolume makes an empty volume.
func (s *Server) createVolume(w http.ResponseWriter, r *http.Request, who caller) error {
	vs, err := s.volumes()
	if err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.NewVolume
	if err := decode(raw, &in, false); err != nil {
		return err
	}
	if err := volume.CheckName(in.Name); err != nil {
		return err
	}
	v := volume.Volume{ID: volume.NewID(), Tenant: who.key.Tenant, Name: in.Name, CreatedAt: who.now.UTC()}
	if err := vs.Files.Make(v.ID); err != nil {
		return err
	}
	if err := vs.Store.CreateVolume(r.Context(), v); err != nil {
		s.dropFiles(r.Context(), v)
		return err
	}
	s.log.Info("volume created", "tenant", v.Tenant, "volume", v.ID)
	writeJSON(w, http.StatusCreated, s.answerVolume(vs, v, who))
	return nil
}

// dropFiles removes the folder of a volume that was not entered, unless it may have been although the store did not say so.
func (s *Server) dropFiles(ctx context.Context, v volume.Volume) {
	ctx, cancel := after(ctx)
	defer cancel()
	_, err := s.cfg.Volumes.Store.Volume(ctx, v.Tenant, v.ID)
	if tartarus.Is(err, tartarus.NotFound) {
		err = s.cfg.Volumes.Files.Remove(v.ID)
	}
	if err != nil {
		s.log.Warn("files of a volume that was not made stay behind", "tenant", v.Tenant, "volume", v.ID, "error", err)
	}
}

// listVolumes lists them all, by name: the protocol has no pages here.
func (s *Server) listVolumes(w http.ResponseWriter, r *http.Request, who caller) error {
	vs, err := s.volumes()
	if err != nil {
		return err
	}
	list, err := vs.Store.Volumes(r.Context(), who.key.Tenant, "", volume.MaxPerTenant)
	if err != nil {
		return err
	}
	out := make([]api.Volume, len(list))
	for i, v := range list {
		out[i] = api.Volume{VolumeID: v.ID, Name: v.Name}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// getVolume describes a volume by id or name, with a token for its content.
func (s *Server) getVolume(w http.ResponseWriter, r *http.Request, who caller) error {
	vs, err := s.volumes()
	if err != nil {
		return err
	}
	v, err := vs.Store.Volume(r.Context(), who.key.Tenant, pathParam(r, "volumeID"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s.answerVolume(vs, v, who))
	return nil
}

// deleteVolume removes a volume and all that is in it. Sandboxes that have it mounted find it empty.
func (s *Server) deleteVolume(w http.ResponseWriter, r *http.Request, who caller) error {
	vs, err := s.volumes()
	if err != nil {
		return err
	}
	v, err := vs.Store.Volume(r.Context(), who.key.Tenant, pathParam(r, "volumeID"))
	if err != nil {
		return err
	}
	// Files first: while the store knows the volume, a removal that was cut short can be asked for again.
	if err := vs.Files.Remove(v.ID); err != nil {
		return err
	}
	if err := vs.Store.RemoveVolume(r.Context(), v.Tenant, v.ID); err != nil {
		return err
	}
	s.log.Info("volume removed", "tenant", v.Tenant, "volume", v.ID)
	noContent(w)
	return nil
}

// answerVolume describes a volume with a token that lets its holder do what the key may: who only reads gets one to read with.
func (s *Server) answerVolume(vs *Volumes, v volume.Volume, who caller) api.VolumeAndToken {
	out := api.VolumeAndToken{VolumeID: v.ID, Name: v.Name, Token: vs.Tokens.Sign(v, !who.key.Role.Covers(tenant.Developer), who.now)}
	// Told always: the default of the SDKs would send the token to somebody else's servers.
	out.Domain = s.cfg.Domain
	return out
}

// enterVolume checks the token of a volume. Its requests count together, as a key's do.
func (s *Server) enterVolume(r *http.Request, who *caller) error {
	vs, err := s.volumes()
	if err != nil {
		return err
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return errNoVolumeToken
	}
	claims, err := vs.Tokens.Check(strings.TrimSpace(token), who.now)
	if err != nil {
		return err
	}
	if pathParam(r, "volumeID") != claims.Volume {
		return tartarus.Errorf(tartarus.Forbidden, "the token is another volume's")
	}
	who.volume = claims
	return s.gate.admit(tenant.Key{ID: claims.Volume}, who.now)
}

var errNoVolumeToken = &tartarus.Error{
	Kind: tartarus.Unauthenticated, Message: "the volume's own token is needed, as Authorization: Bearer; GET /volumes/{id} gives one",
}

// tree opens the volume that a token is for.
func (s *Server) tree(ctx context.Context, who caller, write bool) (*volume.Tree, func(), error) {
	if write && who.volume.ReadOnly {
		return nil, nil, tartarus.Errorf(tartarus.Forbidden, "the token is for reading only")
	}
	if _, err := s.cfg.Volumes.Store.Volume(ctx, who.volume.Tenant, who.volume.Volume); err != nil {
		return nil, nil, err
	}
	return s.cfg.Volumes.Files.Open(who.volume.Volume)
}

// idleVolume is how long a client may send or take nothing in the middle of a file.
const idleVolume = time.Minute

// patientBody reads a body of any length, as long as it goes on.
type patientBody struct {
	r  *http.Request
	rc *http.ResponseController
}

func (b patientBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(idleVolume)) // what cannot have one is a test
	return b.r.Body.Read(p)
}

// patientWriter sends an answer of any length, as long as it goes on.
type patientWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w patientWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(idleVolume)) // what cannot have one is a test
	return w.ResponseWriter.Write(p)
}

// maxMounts bounds the volumes of one sandbox.
const maxMounts = 16

// volumeMounts finds the volumes that a create asks for.
func (s *Server) volumeMounts(ctx context.Context, in []api.VolumeMount, who caller) ([]tartarus.VolumeMount, error) {
	if len(in) == 0 {
		return nil, nil
	}
	vs, err := s.volumes()
	if err != nil {
		return nil, err
	}
	if len(in) > maxMounts {
		return nil, tartarus.Errorf(tartarus.Invalid, "volumeMounts may have %d entries, not %d", maxMounts, len(in))
	}
	var out []tartarus.VolumeMount
	for _, m := range in {
		if err := checkMountPath(m.Path); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o tartarus.VolumeMount) bool { return o.Path == m.Path }) {
			return nil, tartarus.Errorf(tartarus.Invalid, "volumeMounts: two volumes at %s", m.Path)
		}
		v, err := vs.Store.Volume(ctx, who.key.Tenant, m.Name)
		if tartarus.Is(err, tartarus.NotFound) {
			return nil, tartarus.Errorf(tartarus.NotFound, "volumeMounts: there is no volume %.80q", m.Name)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, tartarus.VolumeMount{ID: v.ID, Name: v.Name, Path: m.Path})
	}
	return out, nil
}

// checkMountPath refuses places that a sandbox needs for itself.
func checkMountPath(p string) error {
	if len(p) > 1024 || !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsFunc(p, unicode.IsControl) {
		return tartarus.Errorf(tartarus.Invalid, "volumeMounts: path %.80q must be absolute, without . and .., and not the root", p)
	}
	for _, own := range []string{"/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		if p == own || strings.HasPrefix(p, own+"/") && own != "/run" && own != "/usr" && own != "/etc" {
			return tartarus.Errorf(tartarus.Invalid, "volumeMounts: %s is the sandbox's own", p)
		}
	}
	return nil
}
