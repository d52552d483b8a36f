local before, most = ARGV[1], ARGV[2]
local gone = call('ZRANGEBYSCORE', P .. 'ended', '-inf', '(' .. before, 'LIMIT', 0, most)
for _, id in ipairs(gone) do
  local j = call('HMGET', job_key(id), 'state', 'tenant', 'key')
  if j[3] ~= '' then call('DEL', idem_key(j[2], j[3])) end
  call('ZREM', P .. 'state:' .. j[1], id)
  call('ZREM', P .. 'ended', id)
  call('DEL', job_key(id))
end
return #gone
