/** The form's content in the address after `#`, which browsers do not send to the server. Without files and the key. */

const MAX_LENGTH = 30_000; // mail programs and chats cut longer addresses

/** Values that differ from `initial` → the fragment without `#`; null if it is too long for a link. "empty": none. */
export function toFragment(values, initial) {
  const changed = Object.entries(values).filter(([name, value]) => {
    return value !== initial[name] && !(value instanceof File);
  });
  const fragment = new URLSearchParams(changed.map(([name, value]) => [name, String(value)])).toString();
  return fragment.length > MAX_LENGTH ? null : fragment || "empty";
}

/** `initial` with the values of a fragment. Names and kinds that the form does not have are ignored. */
export function fromFragment(fragment, initial) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const names = Object.keys(initial).filter((name) => given.has(name));
  return {
    ...initial,
    ...Object.fromEntries(
      names.map((name) => [name, typeof initial[name] === "boolean" ? given.get(name) === "true" : given.get(name)]),
    ),
  };
}
