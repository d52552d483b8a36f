local id, tenant, node, key, digest, max, deadline, body, payload, most =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9], tonumber(ARGV[10])
if key ~= '' then
  local first = call('GET', idem_key(tenant, key))
  if first then
    if call('HGET', job_key(first), 'digest') ~= digest then return {'mismatch'} end
    current(first)
    return {'again', call('HGETALL', job_key(first))}
  end
end
if call('EXISTS', job_key(id)) == 1 then return {'conflict'} end
if call('ZCARD', P .. 'open') >= most then return {'full'} end
local seq = call('INCR', P .. 'seq')
call('HSET', job_key(id), 'body', body, 'payload', payload, 'state', 'waiting', 'attempt', 0, 'token', 0, 'max', max, 'node', node, 'tenant', tenant,
  'key', key, 'digest', digest, 'seq', seq, 'deadline', num(deadline), 'enqueued', num(now), 'until', 0, 'ended', 0, 'why', '', 'result', '')
if key ~= '' then call('SET', idem_key(tenant, key), id) end
call('ZADD', P .. 'open', seq, id)
if deadline > 0 and deadline <= now then
  finish({id = id, state = ''}, 'dead', 'deadline', '')
  return {'again', call('HGETALL', job_key(id))}
end
line_up(id, node, tenant, seq)
if deadline > 0 then schedule(id, deadline) end
return {'new', num(now)}
