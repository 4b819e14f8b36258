/** The part of htm/preact/standalone that the console uses. */
export interface VNode {
  type: unknown;
}
export type Child = VNode | string | number | boolean | null | undefined | Child[];
export type Setter<T> = (value: T | ((before: T) => T)) => void;
export interface Ref<T> {
  current: T;
}
export function html(strings: TemplateStringsArray, ...values: unknown[]): VNode;
export function render(node: VNode, parent: Element): void;
export function useState<T>(initial: T | (() => T)): [T, Setter<T>];
export function useEffect(effect: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useLayoutEffect(effect: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useRef<T>(initial: T): Ref<T>;
export function useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
export function useErrorBoundary(): [unknown, () => void];
